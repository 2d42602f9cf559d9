"""S3 as moto has it, behind TLS, with signatures verified.

Usage: s3.py ADDRESS CERTIFICATE KEY

Says `ready`, an access key and its secret: of a user who may do anything with the bucket `reports`.
"""
import json
import os
import ssl
import sys

os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"

from moto.backends import get_backend  # noqa: E402
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

ADDRESS, CERTIFICATE, KEY = sys.argv[1:]
ACCOUNT = "123456789012"

iam = get_backend("iam")[ACCOUNT]["aws"]
iam.create_user("eu-central-1", "reader")
anything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
iam.put_user_policy("reader", "anything", json.dumps({"Version": "2012-10-17", "Statement": [anything]}))
key = iam.create_access_key("reader")
s3 = get_backend("s3")[ACCOUNT]["aws"]
s3.create_bucket("reports", "eu-central-1")
s3.put_object("reports", "2026/march.csv", b"month,total\nmarch,7\n")

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(CERTIFICATE, KEY)
application = DomainDispatcherApplication(create_backend_app)
server = make_server(ADDRESS, 443, application, threaded=True, ssl_context=context)
print("ready", key.access_key_id, key.secret_access_key, flush=True)
server.serve_forever()
