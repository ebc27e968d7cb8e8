//! Real kernels from Debian. apt fetches them with a configuration of its own in the cache, not the machine's.
//!
//! A series such as `6.12` stands for its newest package. Unpacked kernels stay in the cache, and are used again if the
//! mirror no longer has the series or cannot be reached.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::command::{output, run};
use crate::host::packages::{self, KEYRING};

/// Commands that fetch and index kernels, and their packages on Debian and Ubuntu.
const COMMANDS: [(&str, &str); 3] = [("apt-get", "apt"), ("dpkg", "dpkg"), ("depmod", "kmod")];
/// The archives and suites of 5.10, then of 6.1 and 6.12, then of all newer kernels.
const SOURCES: [(&str, &str); 3] = [
    ("debian-security", "bullseye-security"),
    ("debian-security", "bookworm-security"),
    ("debian", "trixie-backports"),
];
/// Packages of one kernel. From 6.19 on they are split; older kernels have the first only.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// The small kernels for virtual machines, which have all features that the tests need.
const FLAVOUR: &str = "-cloud-amd64";
/// Older lists of packages are fetched again.
const STALE: Duration = Duration::from_hours(24);

#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` prints it, such as `6.12.117+deb12-cloud-amd64`.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The release without the flavour.
    pub fn short(&self) -> &str {
        self.release.strip_suffix(FLAVOUR).unwrap_or(&self.release)
    }
}

/// The cache of kernels.
pub struct Kernels {
    cache: PathBuf,
    /// Releases at the mirror, oldest first.
    offered: Vec<String>,
}

impl Kernels {
    /// Opens the cache and asks the mirror for its kernels. If the mirror does not answer, the cache may still do.
    pub fn open(cache: &Path) -> Result<Self> {
        let mut missing = packages::missing(&COMMANDS);
        missing.extend(packages::missing_keyring());
        packages::install(&missing)?;
        let mut kernels = Self { cache: cache.to_owned(), offered: Vec::new() };
        kernels.configure()?;
        let stamp = cache.join("apt/updated");
        let age = fs::metadata(&stamp)
            .and_then(|stamp| stamp.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_none_or(|age| age > STALE) {
            match run(kernels.apt("apt-get").args(["update", "--quiet=2"])) {
                Ok(()) => write(&stamp, "")?,
                Err(error) => println!("{error:#}; using the kernels in the cache"),
            }
        }
        let pattern = format!("^linux-image-[0-9].*{FLAVOUR}$");
        let found = output(kernels.apt("apt-cache").args(["search", "--names-only", &pattern]))?;
        kernels.offered = releases(&found);
        Ok(kernels)
    }

    /// The newest kernel of a series such as `6.1`, or of all for `newest`. It is downloaded unless the cache has it.
    pub fn get(&self, series: &str) -> Result<Kernel> {
        let fetched = match newest(&self.offered, series) {
            Some(release) => self.fetch(release).with_context(|| format!("failed to fetch kernel {release}")),
            None => Err(anyhow::anyhow!("the mirror has no kernel {series}")),
        };
        let error = match fetched {
            Ok(kernel) => return Ok(kernel),
            Err(error) => error,
        };
        let kept = fs::read_dir(self.cache.join("kernels")).into_iter().flatten().flatten();
        let mut kept: Vec<_> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        kept.retain(|name| name.ends_with(FLAVOUR));
        kept.sort_by_key(|release| version(release));
        let Some(release) = newest(&kept, series) else { return Err(error) };
        println!("{error:#}; using {release} from the cache");
        unpacked(&self.directory(release), release)
    }

    fn directory(&self, release: &str) -> PathBuf {
        self.cache.join("kernels").join(release)
    }

    fn fetch(&self, release: &str) -> Result<Kernel> {
        let directory = self.directory(release);
        if directory.is_dir() {
            return unpacked(&directory, release);
        }
        let partial = self.cache.join(format!("partial-{release}"));
        // An interrupted run may have left it.
        let _ = fs::remove_dir_all(&partial);
        let (packages, tree) = (partial.join("packages"), partial.join("tree"));
        fs::create_dir_all(&packages).with_context(|| format!("failed to make {}", packages.display()))?;
        let pattern = format!("^linux-.*-{}$", escape(release));
        let offered = output(self.apt("apt-cache").args(["search", "--names-only", &pattern]))?;
        let offered: Vec<_> =
            offered.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name).collect();
        let names = PARTS.map(|part| format!("{part}{release}"));
        let names = names.iter().filter(|name| offered.contains(&name.as_str()));
        println!("fetching kernel {release}");
        run(self.apt("apt-get").current_dir(&packages).args(["download", "--quiet=2"]).args(names))?;
        for package in fs::read_dir(&packages).context("failed to list packages")?.flatten() {
            run(Command::new("dpkg").arg("-x").arg(package.path()).arg(&tree))?;
        }
        if !tree.join("lib/modules").is_dir() {
            // Newer packages have /usr/lib only.
            std::os::unix::fs::symlink("usr/lib", tree.join("lib"))
                .context("failed to link lib to usr/lib")?;
        }
        run(Command::new("depmod").arg("-b").arg(&tree).arg(release))?;
        unpacked(&tree, release)?;
        let parent = self.cache.join("kernels");
        fs::create_dir_all(&parent).with_context(|| format!("failed to make {}", parent.display()))?;
        fs::rename(&tree, &directory).with_context(|| format!("failed to keep {}", directory.display()))?;
        fs::remove_dir_all(&partial).with_context(|| format!("failed to remove {}", partial.display()))?;
        unpacked(&directory, release)
    }

    fn configure(&self) -> Result<()> {
        let apt = self.cache.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = apt.join(part);
            fs::create_dir_all(&part).with_context(|| format!("failed to make {}", part.display()))?;
        }
        let sources = SOURCES.map(|(archive, suite)| {
            format!("deb [signed-by={} arch=amd64] http://deb.debian.org/{archive} {suite} main\n", KEYRING.0)
        });
        write(&apt.join("sources.list"), &sources.concat())?;
        write(&apt.join("status"), "")?;
        let directory = apt.display();
        // The user _apt, which apt would use, may not have access to our directories.
        write(
            &apt.join("apt.conf"),
            &format!(
                "Dir::State \"{directory}\";\nDir::State::Lists \"lists\";\nDir::State::Status \"{directory}/status\";\n\
                 Dir::Cache \"{directory}/cache\";\nDir::Etc::SourceList \"{directory}/sources.list\";\n\
                 Dir::Etc::SourceParts \"/dev/null\";\nAPT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
            ),
        )
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.cache.join("apt/apt.conf"));
        command
    }
}

fn unpacked(tree: &Path, release: &str) -> Result<Kernel> {
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    let image = if image.is_file() { image } else { tree.join("lib/modules").join(release).join("vmlinuz") };
    let modules = tree.join("lib/modules").join(release);
    for needed in [&image, &modules.join("modules.dep")] {
        if !needed.is_file() {
            bail!(
                "the packages of kernel {release} have no {}; remove {} to fetch them again",
                needed.display(),
                tree.display()
            );
        }
    }
    Ok(Kernel { release: release.to_owned(), image, modules })
}

/// Releases in the output of `apt-cache search`, oldest first.
fn releases(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let releases = names.filter_map(|name| name.strip_prefix(PARTS[0]));
    // A package without a patch level only depends on the newest of its series.
    let mut releases: Vec<_> =
        releases.filter(|release| version(release).len() > 2).map(str::to_owned).collect();
    releases.sort_by_key(|release| version(release));
    releases
}

fn newest<'a>(sorted: &'a [String], series: &str) -> Option<&'a str> {
    let wanted = |release: &&String| series == "newest" || release.starts_with(&format!("{series}."));
    sorted.iter().rev().find(wanted).map(String::as_str)
}

/// The numbers in a release, which sort `6.1.0-0.deb11.52` before `6.1.0-48`.
pub fn version(release: &str) -> Vec<u64> {
    let release = release.strip_suffix(FLAVOUR).unwrap_or(release);
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Escapes a name for apt's regular expressions.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_ascii_alphanumeric()).then_some('\\').into_iter().chain([c])).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series() {
        let text = "\
linux-image-6.1-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.1.0-0.deb11.52-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.99+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-7.3.4+deb13-cloud-amd64 - Linux 7.3.4 for x86-64 cloud
";
        let releases = releases(text);
        for (series, expected) in [
            ("6.1", Some("6.1.0-56-cloud-amd64")),
            ("6.12", Some("6.12.117+deb12-cloud-amd64")),
            ("newest", Some("7.3.4+deb13-cloud-amd64")),
            ("5.10", None),
        ] {
            assert_eq!(newest(&releases, series), expected, "{series}");
        }
    }

    #[test]
    fn names_are_escaped_in_expressions() {
        assert_eq!(escape("6.1+deb"), r"6\.1\+deb");
    }
}
