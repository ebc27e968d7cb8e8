//! The real python-libjuju, a client in the runs. It gets its own Python environment in `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{Shown, output, root, run, succeeds};
use crate::host::packages;

/// The pinned versions to install.
const REQUIREMENTS: &str = "tests/src/juju/libjuju/requirements.txt";
/// Interpreters to try, in this order.
const INTERPRETERS: [&str; 2] = ["python3", "/usr/bin/python3"];
/// Succeeds in an interpreter that can make the environment. From Python 3.13 on it needs C headers, as one module has no
/// wheel there.
const FIT: &str = "
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path('include'), 'Python.h')
sys.exit(0 if (3, 10) <= sys.version_info and (sys.version_info < (3, 13) or os.path.exists(header)) else 1)";

/// Installs python-libjuju unless these versions are installed already, and returns the path of its interpreter.
pub fn ensure() -> Result<PathBuf> {
    let (list, environment) = (root().join(REQUIREMENTS), root().join("target/libjuju"));
    let wanted = fs::read_to_string(&list).with_context(|| format!("failed to read {}", list.display()))?;
    let interpreter = environment.join("bin/python");
    // Written last, so that an interrupted installation starts again.
    let installed = environment.join("installed.txt");
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) && loads(&interpreter) {
        return Ok(interpreter);
    }
    let mut make = Command::new(python()?);
    make.args(["-m", "venv", "--clear"]).arg(&environment);
    println!("installing python-libjuju: {}", Shown(&make));
    run(&mut make).context("Python cannot make an environment; is the package python3-venv installed?")?;
    let mut pip = Command::new(&interpreter);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]);
    run(pip.arg("--requirement").arg(&list))
        .context("pip cannot install python-libjuju; can this host reach PyPI?")?;
    output(&mut load(&interpreter)).context("python-libjuju is installed, but cannot be loaded")?;
    fs::write(&installed, wanted).with_context(|| format!("failed to write {}", installed.display()))?;
    Ok(interpreter)
}

/// The first fit interpreter. If there is none, the system's packages are installed.
fn python() -> Result<&'static str> {
    let fit = || INTERPRETERS.into_iter().find(|name| succeeds(Command::new(name).args(["-c", FIT])));
    if let Some(name) = fit() {
        return Ok(name);
    }
    packages::install(&["python3-venv", "python3-dev"])?;
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
