//! `ca_file`, `certificate_file` and `key_file` of `[broker]` and of `[database]`.

use super::reader::Reader;
use crate::tls::{Identity, Tls, TlsError};

pub(super) fn read(reader: &mut Reader, section: &str) -> Tls {
    let [ca_file, certificate_file, key_file] =
        ["ca_file", "certificate_file", "key_file"].map(|key| format!("{section}.{key}"));
    let authorities = reader.file(&ca_file);
    let own = (reader.file(&certificate_file), reader.file(&key_file));
    let identity = match &own {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        (Some(_), None) => return half(reader, &certificate_file, &key_file),
        (None, Some(_)) => return half(reader, &key_file, &certificate_file),
    };
    Tls::new(authorities.as_deref(), identity).unwrap_or_else(|error| {
        let key = match &error {
            TlsError::Authorities(_) | TlsError::System(_) => &ca_file,
            TlsError::Certificate(_) => &certificate_file,
            TlsError::Key(_) => &key_file,
        };
        reader.problem(key, error.to_string());
        Tls::default()
    })
}

fn half(reader: &mut Reader, given: &str, missing: &str) -> Tls {
    reader.problem(given, format!("goes together with {missing}: set both, or neither"));
    Tls::default()
}
