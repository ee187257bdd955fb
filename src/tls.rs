//! TLS to the broker and to the database: whom we trust and who we are. One set-up for both, and for every connection.
//!
//! Authorities of our own replace those of this system: with a private one, nobody else can vouch for a server. Chain, dates
//! and host name are always checked; nothing turns that off.

use std::error::Error as StdError;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig, RootCertStore};

/// What can't be used of the files that were given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities. No content is quoted: a wrong file may be a secret one.
    #[error("{0}")]
    Authorities(String),
    /// Our own certificate.
    #[error("{0}")]
    Certificate(String),
    /// Its private key.
    #[error("{0}")]
    Key(String),
    /// This system's authorities.
    #[error("the certificates of this system can't be read ({0}): install ca-certificates, or set ca_file")]
    System(String),
}

/// Our own certificate and its key, as PEM.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// The certificate, then the ones between it and its authority.
    pub certificate: &'a str,
    /// The private key.
    pub key: &'a str,
}

/// Whom we trust, and who we are. The default trusts the authorities of this system and shows no certificate.
#[derive(Clone, Default)]
pub struct Tls {
    is_configured: bool,
    shows_certificate: bool,
    /// Of the files that were given: tells whether others are the same.
    fingerprint: [u8; 32],
    /// Made at once from what was given, and at the first use where nothing was.
    client: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("is_configured", &self.is_configured).finish_non_exhaustive()
    }
}

impl Tls {
    /// Trusts `authorities` and nobody else, and shows `identity` to servers that ask.
    ///
    /// # Errors
    /// When something given can't be used.
    pub fn new(authorities: Option<&str>, identity: Option<Identity<'_>>) -> Result<Self, TlsError> {
        if authorities.is_none() && identity.is_none() {
            return Ok(Self::default());
        }
        let roots = authorities.map_or_else(of_this_system, given)?;
        let client = Arc::new(OnceLock::from(Arc::new(client(roots, identity)?)));
        let fingerprint = fingerprint(authorities, identity);
        Ok(Self { is_configured: true, shows_certificate: identity.is_some(), fingerprint, client })
    }

    /// Whether files were given: then a connection without TLS is a mistake.
    pub fn is_configured(&self) -> bool {
        self.is_configured
    }

    /// Whether a server that asks who we are sees a certificate of ours.
    pub fn shows_certificate(&self) -> bool {
        self.shows_certificate
    }

    /// Whether the other was made from the same files.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.is_configured, self.fingerprint) == (other.is_configured, other.fingerprint)
    }

    /// For either client library.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(client) = self.client.get() {
            return Ok(Arc::clone(client));
        }
        let made = Arc::new(client(of_this_system()?, None)?);
        Ok(Arc::clone(self.client.get_or_init(|| made)))
    }
}

fn fingerprint(authorities: Option<&str>, identity: Option<Identity<'_>>) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for part in [authorities, identity.map(|own| own.certificate), identity.map(|own| own.key)] {
        // PEM has no NUL, so nothing can pass from one part to the next.
        hash.update(part.unwrap_or_default().as_bytes());
        hash.update(&[0]);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(hash.finish().as_ref());
    fingerprint
}

fn client(roots: RootCertStore, identity: Option<Identity<'_>>) -> Result<ClientConfig, TlsError> {
    // The provider is named, so that no other crate's features can make the choice ambiguous, which would be a panic.
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::System(e.to_string()))?
        .with_root_certificates(roots);
    let Some(Identity { certificate, key }) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate).ok_or_else(|| TlsError::Certificate(nothing_in("certificate")))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| TlsError::Key(nothing_in("PRIVATE KEY")))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| TlsError::Key(format!("the key and the certificate don't go together: {e}")))
}

fn given(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = certificates(pem).ok_or_else(|| TlsError::Authorities(nothing_in("certificate")))?;
    for (n, certificate) in found.into_iter().enumerate() {
        let unusable = |e| TlsError::Authorities(format!("certificate {} of it can't be used: {e}", n + 1));
        roots.add(certificate).map_err(unusable)?;
    }
    Ok(roots)
}

fn of_this_system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for problem in &found.errors {
        tracing::warn!(%problem, "a certificate of this system can't be read and is not trusted");
    }
    let mut roots = RootCertStore::empty();
    let (usable, _unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(TlsError::System(why));
    }
    Ok(roots)
}

/// `None` when there is none, or when it is not PEM.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|found| !found.is_empty())
}

fn nothing_in(what: &str) -> String {
    format!("holds no {what} in PEM (-----BEGIN {}-----)", what.to_uppercase())
}

/// What a refused handshake means, and what to do, said of the other side; `None` where TLS is not what failed.
pub(crate) fn explain(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(words(tls));
        }
        // An I/O error answers with the source of what it wraps, not with what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map_or_else(|| error.source(), |inner| Some(inner as &(dyn StdError + 'static)));
    }
    None
}

fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => of_certificate(why),
        rustls::Error::AlertReceived(alert) => {
            format!(
                "it refused the handshake ({alert:?}): if it wants a certificate of ours, set certificate_file and key_file"
            )
        }
        other => format!("the TLS handshake failed: {other}"),
    }
}

fn of_certificate(why: &CertificateError) -> String {
    match why {
        // A private authority that was made anew under its old name has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!(
                "its certificate is signed by nobody trusted here ({why}): set ca_file to the certificate of its authority"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("its certificate has expired ({why}): renew it there, or mend the clock here")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("its certificate is not valid yet ({why}): mend the clock here or there")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("its certificate is for another host ({why}): use a name that it is made out for")
        }
        other => format!("its certificate is not accepted ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_none_is_refused_without_a_word_of_its_content_s7_4() {
        let odd = "-----BEGIN hunter2\nhunter2\n-----END CERTIFICATE-----\n";
        for text in ["", "hunter2", odd] {
            let told = Tls::new(Some(text), None).unwrap_err().to_string();
            assert!(told.contains("no certificate in PEM") && !told.contains("hunter2"), "{told}");
            let identity = Identity { certificate: text, key: text };
            let told = Tls::new(None, Some(identity)).map(drop).unwrap_err().to_string();
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn a_refusal_is_found_however_deep_it_is_wrapped() {
        let refused = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, refused()));
        assert!(explain(&wrapped).unwrap().contains("set ca_file"));
        assert_eq!(explain(&std::io::Error::other("away")), None);
    }
}
