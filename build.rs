//! Turns `proto/` into Rust messages with the canonical protobuf JSON mapping, and lists `migrations/`. Needs no `protoc`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");
    #[allow(clippy::disallowed_methods, reason = "cargo tells a build script where to write by a variable")]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    compile_protos(&out)?;
    list_migrations(&out)?;
    Ok(())
}

fn compile_protos(out: &Path) -> Result<(), Box<dyn Error>> {
    let files = files_below(Path::new("proto"), "proto")?;
    let descriptors = protox::compile(&files, ["proto"])?;
    let encoded = prost_bytes(&descriptors);
    prost_build::Config::new()
        .compile_well_known_types()
        // Personal data: the domain writes a masked `Debug` of its own.
        .skip_debug([".onceflow.sms.v1.SmsRequested"])
        .extern_path(".google.protobuf", "::pbjson_types")
        // Personal data: the domain writes a masked `Debug` of its own.
        .skip_debug([".onceflow.sms.v1.SmsRequested"])
        .out_dir(out)
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .ignore_unknown_fields()
        .out_dir(out)
        .build(&[".onceflow"])?;
    Ok(())
}

fn prost_bytes(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}

fn files_below(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path, extension)?);
        } else if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Writes `[(number, name, sql)]` of every `migrations/NNNN_<area>_<what>.sql`, in order.
fn list_migrations(out: &Path) -> Result<(), Box<dyn Error>> {
    let mut list = String::from("&[\n");
    for file in files_below(Path::new("migrations"), "sql")? {
        let stem = file.file_stem().and_then(|s| s.to_str()).ok_or("a migration's name is not UTF-8")?;
        let (number, name) = stem.split_once('_').ok_or("a migration is named NNNN_<area>_<what>.sql")?;
        let number: i32 = number.parse()?;
        let path = fs::canonicalize(&file)?;
        writeln!(list, "    ({number}, {name:?}, include_str!({path:?})),")?;
    }
    list.push(']');
    fs::write(out.join("migrations.rs"), list)?;
    Ok(())
}
