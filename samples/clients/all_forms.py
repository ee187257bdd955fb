"""Publishes one event in every form that Onceflow accepts, with pika.

    pip install pika grpcio-tools
    python samples/clients/all_forms.py AMQP_URL

The same ids every time: a second run makes duplicates and changes nothing.
"""

import base64
import json
import pathlib
import sys
import tempfile

import pika
from google.protobuf import json_format
from grpc_tools import protoc

TYPE = "org.user.upserted.v1"
SOURCE = "/samples/pika"
JSON, PROTOBUF = "application/json", "application/protobuf"
PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


def user_message():
    """The class of the event's message, generated from proto/; a real producer generates it at build time."""
    file = "org/v1/user.proto"
    with tempfile.TemporaryDirectory() as out:
        if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={out}", file]) != 0:
            raise SystemExit(f"{PROTO / file} can't be compiled")
        sys.path.insert(0, out)
        from org.v1 import user_pb2

    return user_pb2.UserUpserted


def messages():
    """(form and format, properties, body) of each."""
    UserUpserted = user_message()
    for form in ("plain", "binary", "structured"):
        for content_type in (JSON, PROTOBUF):
            name = f"pika-{form}-{content_type.split('/')[1]}"
            user = {"directory": "samples", "id": name, "version": "1", "name": "Example Person"}
            body = json.dumps(user).encode()
            if content_type == PROTOBUF:
                body = json_format.ParseDict(user, UserUpserted()).SerializeToString()
            if form == "plain":
                yield name, {"message_id": name, "type": TYPE, "content_type": content_type}, body
            elif form == "binary":
                attributes = {"specversion": "1.0", "id": name, "source": SOURCE, "type": TYPE, "subject": f"user/{name}"}
                headers = {f"cloudEvents:{key}": value for key, value in attributes.items()}
                yield name, {"content_type": content_type, "headers": headers}, body
            else:
                event = {"specversion": "1.0", "id": name, "source": SOURCE, "type": TYPE, "datacontenttype": content_type}
                event |= {"data": user} if content_type == JSON else {"data_base64": base64.b64encode(body).decode()}
                yield name, {"content_type": "application/cloudevents+json"}, json.dumps(event).encode()


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
    channel = connection.channel()
    channel.confirm_delivery()
    for name, properties, body in messages():
        # Raises when the broker refuses it, or when no queue is bound for it.
        channel.basic_publish(
            "onceflow.in", TYPE, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True
        )
        print(f"confirmed {name}")
    connection.close()


main()
