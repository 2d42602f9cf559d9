import sys

import boto3

bucket = boto3.resource("s3", region_name="eu-central-1").Bucket("reports")
verb, key = sys.argv[1:]
if verb == "get":
    print(bucket.Object(key).get()["Body"].read().decode())
else:
    bucket.Object(key).delete()
