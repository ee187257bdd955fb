//! A virtual host of its own for each test, made through the broker's management API.

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::servers::{Addresses, servers};
use super::{in_background, unique};

const PREFIX: &str = "it-";

/// An empty virtual host; deleted with this value.
#[derive(Debug)]
pub(crate) struct Vhost {
    name: String,
    management_url: String,
    url: String,
}

impl Vhost {
    pub(crate) async fn new() -> Self {
        let addresses = servers().await;
        let name = unique(PREFIX);
        let mut url = url::Url::parse(&addresses.amqp_url).unwrap();
        let user = url.username().to_owned();
        url.set_path(&name);
        let vhost = Self { name, management_url: addresses.management_url.clone(), url: url.into() };
        vhost.request(Method::PUT, &format!("/api/vhosts/{}", vhost.name), json!({})).await;
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        vhost.request(Method::PUT, &format!("/api/permissions/{}/{user}", vhost.name), everything).await;
        vhost
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `http://…` of the management API, with credentials.
    pub(crate) fn management_url(&self) -> &str {
        &self.management_url
    }

    /// `amqp://…` of this virtual host.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Asks the management API, e.g. `GET /api/queues/<vhost>`; its counters lag by some seconds.
    pub(crate) async fn request(&self, method: Method, path: &str, body: Value) -> String {
        let request = Client::new().request(method, format!("{}{path}", self.management_url)).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.text().await.unwrap()
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let (url, name) = (self.management_url.clone(), std::mem::take(&mut self.name));
        in_background(move || async move { delete(&url, &name).await });
    }
}

/// Removes what earlier test processes could not.
pub(super) async fn remove_old(addresses: &Addresses) {
    let url = &addresses.management_url;
    let answer = Client::new().get(format!("{url}/api/vhosts")).send().await.unwrap();
    let found: Vec<Value> = answer.json().await.unwrap();
    for name in found.iter().filter_map(|vhost| vhost["name"].as_str()) {
        if name.starts_with(PREFIX) {
            delete(url, name).await;
        }
    }
}

async fn delete(management_url: &str, name: &str) {
    // Best effort: the broker may be stopping already.
    let _ = Client::new().delete(format!("{management_url}/api/vhosts/{name}")).send().await;
}
