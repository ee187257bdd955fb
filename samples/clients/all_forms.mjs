// Publishes one event in every form that Onceflow accepts, with amqplib.
//
//   npm install amqplib protobufjs
//   node samples/clients/all_forms.mjs AMQP_URL
//
// The same ids every time: a second run makes duplicates and changes nothing.

import { fileURLToPath } from "node:url";
import amqp from "amqplib";
import protobuf from "protobufjs";

const TYPE = "org.user.upserted.v1";
const SOURCE = "/samples/amqplib";
const JSON_TYPE = "application/json";
const PROTOBUF = "application/protobuf";

const proto = await protobuf.load(fileURLToPath(new URL("../../proto/org/v1/user.proto", import.meta.url)));
const UserUpserted = proto.lookupType("onceflow.org.v1.UserUpserted");

function message(form, contentType) {
  const name = `amqplib-${form}-${contentType.split("/")[1]}`;
  const user = { directory: "samples", id: name, version: "1", name: "Example Person" };
  const body = contentType === JSON_TYPE
    ? Buffer.from(JSON.stringify(user))
    : Buffer.from(UserUpserted.encode(UserUpserted.fromObject(user)).finish());
  if (form === "plain") return { name, properties: { messageId: name, type: TYPE, contentType }, body };
  const attributes = { specversion: "1.0", id: name, source: SOURCE, type: TYPE };
  if (form === "binary") {
    const headers = Object.fromEntries(
      Object.entries({ ...attributes, subject: `user/${name}` }).map(([key, value]) => [`cloudEvents:${key}`, value]));
    return { name, properties: { contentType, headers }, body };
  }
  const data = contentType === JSON_TYPE ? { data: user } : { data_base64: body.toString("base64") };
  const event = { ...attributes, datacontenttype: contentType, ...data };
  return { name, properties: { contentType: "application/cloudevents+json" }, body: Buffer.from(JSON.stringify(event)) };
}

const [url] = process.argv.slice(2);
if (!url) {
  console.error("usage: node samples/clients/all_forms.mjs AMQP_URL");
  process.exit(2);
}
const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
// A message that no queue is bound for comes back before its confirm.
channel.on("return", (returned) => { throw new Error(`not routed: ${returned.fields.routingKey}`); });
for (const form of ["plain", "binary", "structured"]) {
  for (const contentType of [JSON_TYPE, PROTOBUF]) {
    const { name, properties, body } = message(form, contentType);
    channel.publish("onceflow.in", TYPE, body, { ...properties, persistent: true, mandatory: true });
    await channel.waitForConfirms();
    console.log(`confirmed ${name}`);
  }
}
await connection.close();
