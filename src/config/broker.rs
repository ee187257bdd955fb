//! `[broker]`: `url`, `url_file`, `allow_plaintext`, `heartbeat`, `ca_file`, `certificate_file`, `key_file`; of `[topology]`: `declare`.

use super::reader::Reader;
use super::tls;
use crate::broker::Settings;

pub(super) fn read(reader: &mut Reader) -> Settings {
    let settings = Settings {
        url: reader.required_secret("broker.url", "amqp://user:password@localhost:5672/%2f"),
        allow_plaintext: reader.get("broker.allow_plaintext", false),
        heartbeat: reader.duration("broker.heartbeat", "10s"),
        tls: tls::read(reader, "broker"),
        name: "onceflow".to_owned(),
        declare: reader.get("topology.declare", true),
        signs_as: None,
    };
    let given = !secrecy::ExposeSecret::expose_secret(&settings.url).is_empty();
    if let Some(error) = settings.check().err().filter(|_| given) {
        reader.problem("broker.url", error.to_string());
    }
    settings
}
