//! Hashes by which requests are told apart. Every part carries its length, so that no two requests share their bytes.

use aws_lc_rs::digest::{Context, SHA256};

use super::event::SmsRequest;

/// SHA-256 of everything that was asked for.
///
/// A number counts in E.164, so that two ways to write it are one request.
pub(crate) fn of_request(request: &SmsRequest) -> Vec<u8> {
    let mut hash = Hash::new("request");
    let phone = request.phone.number().map_or(request.phone.expose(), |number| number.expose());
    hash.text(phone);
    hash.text(request.template_id.as_deref().unwrap_or_default());
    hash.params(request);
    hash.text(request.class.map_or("", |class| class.as_str()));
    hash.text(&request.expires_at.map(|time| time.to_string()).unwrap_or_default());
    hash.text(request.signature.as_deref().unwrap_or_default());
    hash.end()
}

/// SHA-256 of what the recipient would read: number, template and parameters.
pub(crate) fn of_content(request: &SmsRequest) -> Vec<u8> {
    let mut hash = Hash::new("content");
    hash.text(request.phone.number().map_or("", |number| number.expose()));
    hash.text(request.template_id.as_deref().unwrap_or_default());
    hash.params(request);
    hash.end()
}

struct Hash(Context);

impl Hash {
    fn new(purpose: &str) -> Self {
        let mut hash = Self(Context::new(&SHA256));
        hash.text(purpose);
        hash
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text.as_bytes());
    }

    fn params(&mut self, request: &SmsRequest) {
        let params = request.params.expose();
        self.number(params.len());
        for (name, value) in params {
            self.text(name);
            self.text(value);
        }
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_be_bytes());
    }

    fn end(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}
