//! The Go modules here: the API's types and client in `api`, programs under `examples`. Built from the sources that are there now.
//!
//! Enters: a folder, from the root. Leaves: a path to run, or what the toolchain has to say of the sources. Guaranteed: nothing but
//! Go's own cache is relied on, which is shared with the other binaries of the testbed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::Error;
use super::run_dir::{lock, target};

/// The path of the program `NAME` in `examples/NAME`.
///
/// # Errors
/// There is no fitting Go toolchain, or the program does not compile; the toolchain's words are on standard error then.
pub async fn example(name: &'static str) -> Result<PathBuf, Error> {
    tokio::task::spawn_blocking(move || {
        let cache = target().join("bin");
        std::fs::create_dir_all(&cache).map_err(Error::file("create", &cache))?;
        let _turn = lock(&cache.join(".lock"))?;
        let program = cache.join(name);
        let unfinished = cache.join(format!(".{name}.unfinished"));
        let output = unfinished.to_string_lossy();
        let built = run(
            &format!("examples/{name}"),
            &["build", "-ldflags", "-s -w", "-o", &output, "."],
            &[],
        )?;
        if !built.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&built.stderr));
            return Err(Error::Build {
                binary: name,
                module: module(&format!("examples/{name}")),
                status: built.status,
            });
        }
        // Whoever runs the former one goes on running it.
        std::fs::rename(&unfinished, &program).map_err(Error::file("move into place", &program))?;
        Ok(program)
    })
    .await?
}

/// Runs `go` in the module of a folder, whatever its exit status.
pub async fn go_in(
    folder: &'static str,
    arguments: &'static [&'static str],
    environment: Vec<(&'static str, PathBuf)>,
) -> Result<Output, Error> {
    tokio::task::spawn_blocking(move || run(folder, arguments, &environment)).await?
}

/// The files of a folder that are not as gofmt has them.
pub async fn unformatted(folder: &'static str) -> Result<String, Error> {
    let root = go_in(folder, &["env", "GOROOT"], vec![]).await?;
    let root = String::from_utf8_lossy(&root.stdout).trim().to_owned();
    let gofmt = Path::new(&root).join("bin/gofmt");
    let output = Command::new(&gofmt)
        .current_dir(module(folder))
        .args(["-l", "."])
        .output()
        .map_err(Error::file("run", &gofmt))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn run(folder: &str, arguments: &[&str], environment: &[(&str, PathBuf)]) -> Result<Output, Error> {
    Command::new("go")
        .current_dir(module(folder))
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        // As the testbed's other binaries are built: what they have in common is compiled once.
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false")
        .output()
        .map_err(|error| Error::Go {
            binary: "Go code",
            version: format!("of {folder}"),
            reason: format!("`go`: {error}"),
            minimum: "1.25".to_owned(),
            cached: target().join("bin"),
        })
}

fn module(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}
