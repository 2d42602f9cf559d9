"""Each of the four kinds of call; messages are plain bytes, so that no generated code is needed."""
import sys

import grpc

with grpc.secure_channel("greeter.example:443", grpc.ssl_channel_credentials()) as channel:
    if len(sys.argv) > 1:
        channel.unary_unary("/greet.Greeter/" + sys.argv[1])(b"Ann")
    print(channel.unary_unary("/greet.Greeter/Unary")(b"Ann"))
    print(list(channel.unary_stream("/greet.Greeter/Down")(b"Ann")))
    print(channel.stream_unary("/greet.Greeter/Up")(iter([b"Ann", b"Bob"])))
    print(list(channel.stream_stream("/greet.Greeter/Both")(iter([b"Ann", b"Bob"]))))
