//! The environment variables that mean something to us.

use std::collections::BTreeMap;

/// Variables with a name of their own, and the key each stands for.
const NAMED: [(&str, &str); 5] = [
    ("ONCEFLOW_AMQP_URL", "broker.url"),
    ("ONCEFLOW_DATABASE_URL", "database.url"),
    ("ONCEFLOW_ADMIN_LISTEN", "admin.listen"),
    ("ONCEFLOW_METRICS_LISTEN", "admin.metrics_listen"),
    ("ONCEFLOW_ADMIN_TOKEN", "admin.token"),
];

/// One variable of the environment, where set and not empty.
pub fn variable(name: &str) -> Option<String> {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Variable and value by configuration key. Variables of other meanings, such as those that an orchestrator makes for a service
/// of our name, are left alone: only `ONCEFLOW_<SECTION>__<KEY>` and the named ones are ours.
pub(super) fn overrides() -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    for (name, value) in std::env::vars() {
        if let Some(key) = key_of(&name).filter(|_| !value.is_empty()) {
            found.insert(key, (name, value));
        }
    }
    found
}

fn key_of(name: &str) -> Option<String> {
    let plain = name.strip_suffix("_FILE");
    if let Some((_, key)) = NAMED.iter().find(|(known, _)| *known == name) {
        return Some((*key).to_owned());
    }
    if let Some((_, key)) = NAMED.iter().find(|(known, _)| Some(*known) == plain) {
        return Some(format!("{key}_file"));
    }
    let (section, key) = name.strip_prefix("ONCEFLOW_")?.split_once("__")?;
    Some(format!("{}.{}", section.to_lowercase(), key.to_lowercase().replace("__", ".")))
}

/// How a key is spelled as a variable, for messages.
pub(super) fn variable_for(key: &str) -> String {
    match NAMED.iter().find(|(_, known)| *known == key) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("ONCEFLOW_{}", key.to_uppercase().replace('.', "__")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_variables_secrets_in_files_and_nested_keys_are_recognised() {
        assert_eq!(key_of("ONCEFLOW_AMQP_URL").as_deref(), Some("broker.url"));
        assert_eq!(key_of("ONCEFLOW_DATABASE_URL_FILE").as_deref(), Some("database.url_file"));
        assert_eq!(key_of("ONCEFLOW_RUNTIME__PREFETCH").as_deref(), Some("runtime.prefetch"));
        assert_eq!(variable_for("runtime.prefetch"), "ONCEFLOW_RUNTIME__PREFETCH");
    }

    #[test]
    fn variables_that_an_orchestrator_makes_for_a_service_of_our_name_are_left_alone() {
        assert_eq!(key_of("ONCEFLOW_SERVICE_HOST"), None);
        assert_eq!(key_of("ONCEFLOW_PORT_9463_TCP"), None);
    }
}
