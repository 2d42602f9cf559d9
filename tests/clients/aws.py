"""boto3, a call for each line of JSON: {"service": …, "call": …, "with": {…}, "endpoint": …}. `text` in `with` is the body.

Answers with what came back, or {"error": code, "message": …}.
"""
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

for line in sys.stdin:
    asked = json.loads(line)
    # A host of the region's own, also in presigned URLs.
    config = None if "endpoint" in asked else Config(s3={"addressing_style": "virtual"})
    client = boto3.client(asked["service"], region_name="eu-central-1", endpoint_url=asked.get("endpoint"), config=config)
    given = asked.get("with", {})
    if "text" in given:
        given["Body"] = given.pop("text").encode()
    try:
        if asked["call"] == "presign":
            got = {"url": client.generate_presigned_url("get_object", given)}
        else:
            got = getattr(client, asked["call"])(**given)
        if "Body" in got:
            got["Body"] = got["Body"].read().decode()
    except ClientError as error:
        got = {"error": error.response["Error"]["Code"], "message": str(error)}
    except Exception as error:
        got = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(got, default=str), flush=True)
