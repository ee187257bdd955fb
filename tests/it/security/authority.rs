//! A certificate authority for one test, made with the `openssl` command, which Debian's PostgreSQL brings along: no TLS library
//! of its own comes into the build for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Signs certificates; gone with this value.
pub(super) struct Authority {
    place: TempDir,
}

/// Files in PEM, which every account may read: a server under test runs as another one.
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let authority = Self { place: crate::harness::project() };
        let basic = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        let out = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority of a test", "-days", "2"];
        authority.openssl(&[&["req", "-x509"][..], &NEW_KEY, &out, &basic].concat());
        authority
    }

    /// Whoever trusts this file trusts what this authority signs.
    pub(super) fn file(&self) -> PathBuf {
        self.place.path().join("ca.pem")
    }

    /// For servers that are reached as `name`.
    pub(super) fn server(&self, name: &str) -> Pair {
        self.sign("server", "of a test", &format!("subjectAltName=DNS:{name}"), "2")
    }

    /// Ends in the second in which it is made.
    pub(super) fn ended(&self, name: &str) -> Pair {
        self.sign("ended", "of a test", &format!("subjectAltName=DNS:{name}"), "0")
    }

    /// For us, to show.
    pub(super) fn client(&self) -> Pair {
        self.user("client")
    }

    /// For us, to show as this user.
    pub(super) fn user(&self, name: &str) -> Pair {
        self.sign(name, name, "extendedKeyUsage=clientAuth", "2")
    }

    fn sign(&self, file: &str, name: &str, extension: &str, days: &str) -> Pair {
        let path = |ending: &str| format!("{file}.{ending}");
        let [key, request, certificate, extensions] = ["key", "csr", "pem", "ext"].map(path);
        fs::write(self.place.path().join(&extensions), format!("{extension}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let subject = format!("/CN={name}");
        let out = ["-keyout", &key, "-out", &request, "-subj", &subject];
        self.openssl(&[&["req", "-new"][..], &NEW_KEY, &out].concat());
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", &extensions, "-days", days];
        self.openssl(&[&["x509", "-req", "-in", &request, "-out", &certificate][..], &by].concat());
        let pair = Pair { certificate: self.place.path().join(certificate), key: self.place.path().join(key) };
        readable(&pair.key);
        pair
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.place.path()).output();
        let output = output.expect("the command openssl is missing: scripts/setup.sh installs it");
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

fn readable(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
}
