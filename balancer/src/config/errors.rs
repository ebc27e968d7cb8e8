//! Every error of a configuration at once, for `check`. The agent stops at the first.

use std::path::Path;

use super::{
    Config, ConfigError, Fault, File, Host, api, cluster, metrics, paths, policy, read_text, redirect,
};
use crate::operator::cli;

/// The errors of the file at `path` that do not depend on the host, in its order.
pub(super) fn errors(path: &Path, host: &Host) -> Vec<ConfigError> {
    let text = match read_text(path, Path::new(cli::CONFIG)) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => return vec![error],
    };
    in_text(path, &text, host)
}

pub(super) fn in_text(path: &Path, text: &str, host: &Host) -> Vec<ConfigError> {
    let mut faults = match File::parse(text) {
        Ok(file) => {
            let mut faults = file.faults();
            faults.extend(of_sections(&file, host));
            faults
        }
        Err(fault) => vec![fault],
    };
    faults.sort_by_key(|fault| fault.span.as_ref().map_or(usize::MAX, |span| span.start));
    faults.dedup_by(|one, other| one.span == other.span && one.message == other.message);
    faults.into_iter().map(|fault| fault.in_file(path, text)).collect()
}

/// The first error of each section.
fn of_sections(file: &File<'_>, host: &Host) -> Vec<Fault> {
    let mut faults = Vec::new();
    let paths = file.table("paths").and_then(|table| paths::paths(&table, host));
    let api = file.table("api").and_then(|table| api::api(&table, None));
    let policy = file.table("policy").and_then(|table| policy::policy(&table));
    let metrics = file.table("metrics").and_then(|table| metrics::metrics(&table));
    let redirect = file.table("redirect").and_then(|table| redirect::redirect(&table));
    let listed = || -> Result<(), Fault> {
        let table = file.table("cluster")?;
        let listed = table.tables("cluster.controllers")?;
        if !listed.is_empty() {
            cluster::cluster(&table, &listed, API_PORT, &host.juju, host)?;
        }
        Ok(())
    };
    faults.extend(paths.err());
    faults.extend(api.err());
    faults.extend(listed().err());
    faults.extend(policy.err());
    faults.extend(metrics.err());
    faults.extend(redirect.err());
    faults
}

/// Stands for one that may be wrong itself.
const API_PORT: u16 = 17070;

impl Config {
    /// All errors of the file at `path`, where [`Config::load`] has found `first`.
    pub fn errors(path: &Path, first: ConfigError) -> Vec<ConfigError> {
        let mut errors = errors(path, &Host::here(&[]));
        // It may depend on this host.
        if errors.iter().all(|error| error.to_string() != first.to_string()) {
            errors.push(first);
        }
        errors
    }
}
