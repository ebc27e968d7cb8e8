//! The real python-libjuju, which the runs use as a client: in a Python environment of its own below `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{Shown, output, root, run, succeeds};
use crate::host::system::install;

/// The versions that are installed, each pinned.
const REQUIREMENTS: &str = "tests/src/juju/libjuju/requirements.txt";
/// Interpreters that are tried, in this order.
const INTERPRETERS: [&str; 2] = ["python3", "/usr/bin/python3"];
/// Whether an interpreter can make an environment and install everything: some module of the list comes as C sources
/// for Python 3.13 and newer.
const FIT: &str = "
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path('include'), 'Python.h')
sys.exit(0 if (3, 10) <= sys.version_info and (sys.version_info < (3, 13) or os.path.exists(header)) else 1)";

/// Installs it unless the same versions are there and can be loaded; says where its interpreter is.
///
/// # Errors
/// Python or its `venv` is missing and cannot be installed, or pip fails; says what to do.
pub fn ensure() -> Result<PathBuf> {
    let (list, environment) = (root().join(REQUIREMENTS), root().join("target/libjuju"));
    let wanted = fs::read_to_string(&list).with_context(|| format!("failed to read {}", list.display()))?;
    let interpreter = environment.join("bin/python");
    // Written last, so that half an installation is none.
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) && loads(&interpreter) {
        return Ok(interpreter);
    }
    let mut make = Command::new(python()?);
    make.args(["-m", "venv", "--clear"]).arg(&environment);
    println!("installing python-libjuju: {}", Shown(&make));
    run(&mut make).context("no Python environment can be made; is the package python3-venv installed?")?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]);
    run(pip.arg("--requirement").arg(&list))
        .context("pip cannot install python-libjuju; is PyPI reached?")?;
    output(&mut load(&interpreter)).context("python-libjuju was installed, and cannot be loaded")?;
    fs::write(&installed, wanted).with_context(|| format!("failed to write {}", installed.display()))?;
    Ok(interpreter)
}

/// The first interpreter that is fit, from the system's packages if there is none.
fn python() -> Result<&'static str> {
    let fit = || INTERPRETERS.into_iter().find(|name| succeeds(Command::new(name).args(["-c", FIT])));
    if let Some(name) = fit() {
        return Ok(name);
    }
    install(&["python3-venv", "python3-dev"])?;
    let Some(name) = fit() else {
        bail!(
            "python-libjuju needs Python 3.10 or newer with venv, ensurepip and, from 3.13 on, Python.h: \
             none of {INTERPRETERS:?} has them"
        )
    };
    Ok(name)
}

fn load(interpreter: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.args(["-I", "-c", "import juju.controller"]);
    command
}

fn loads(interpreter: &Path) -> bool {
    succeeds(&mut load(interpreter))
}
