//! Hosts made of files, and this one.

use super::*;

const NONE_V1: &str = "9223372036854771712";

struct Fake(tempfile::TempDir);

impl Fake {
    fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            fake.put(name, text);
        }
        fake
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.replace("ROOT", self.0.path().to_str().unwrap())).unwrap();
    }

    fn gauge(&self, pid: u32) -> Gauge {
        let mut gauge = Gauge::new(self.0.path().join("proc"));
        gauge.follow(pid);
        gauge
    }
}

#[test]
fn jujud_is_found_by_its_name_when_it_comes_later() {
    let fake = Fake::new(&[
        ("proc/12/comm", "sshd\n"),
        ("proc/12/cgroup", "0::/ssh.slice\n"),
        ("proc/mounts", "none ROOT/cg cgroup2 rw 0 0\n"),
        ("cg/juju.slice/memory.current", "100\n"),
        ("cg/juju.slice/memory.max", "1000\n"),
    ]);
    let mut gauge = Gauge::new(fake.0.path().join("proc"));
    gauge.seek();
    assert!(!gauge.follows());
    fake.put("proc/34/comm", "jujud\n");
    fake.put("proc/34/cgroup", "0::/juju.slice\n");
    gauge.seek();
    assert!(gauge.follows());
    assert!(gauge.read().words.contains("/juju.slice"), "{}", gauge.read().words);
}

const MEMINFO: (&str, &str) =
    ("proc/meminfo", "MemTotal:       1024000 kB\nMemFree: 3 kB\nMemAvailable:   512000 kB\n");
const PSI: (&str, &str) = (
    "proc/pressure/memory",
    "some avg10=1.59 avg60=9.00 avg300=0.00 total=1\nfull avg10=0.30 avg60=9.00 avg300=0.00 total=1\n",
);
const MOUNTS_V2: (&str, &str) =
    ("proc/mounts", "proc /proc proc rw 0 0\ncgroup2 ROOT/cg\\0401 cgroup2 rw 0 0\n");

/// A name, the files of a host, its words, then its reading: used and max in MiB, `some` and `full` in permille.
type Row =
    (&'static str, &'static [&'static [(&'static str, &'static str)]], &'static str, (u64, u64, u16, u16));

const V2_SLICE: [(&str, &str); 4] = [
    ("proc/7/cgroup", "0::/a.slice/b.service\n"),
    ("cg 1/a.slice/b.service/memory.max", "104857600\n"),
    ("cg 1/a.slice/b.service/memory.current", "83886080\n"),
    ("cg 1/a.slice/memory.max", "209715200\n"),
];
const V1: [(&str, &str); 8] = [
    (
        "proc/mounts",
        "cgroup ROOT/cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup ROOT/cg/memory cgroup rw,memory 0 0\n\
         cgroup2 ROOT/cg/unified cgroup2 rw 0 0\n",
    ),
    ("proc/7/cgroup", "9:name=systemd:/j\n4:memory:/j\n1:cpu,cpuacct:/elsewhere\n0::/j\n"),
    ("cg/memory/memory.limit_in_bytes", NONE_V1),
    ("cg/memory/memory.usage_in_bytes", "999999999\n"),
    ("cg/memory/j/memory.limit_in_bytes", "104857600\n"),
    ("cg/memory/j/memory.usage_in_bytes", "104857600\n"),
    ("cg/memory/j/memory.stat", "inactive_file 1\ntotal_inactive_file 10485760\n"),
    ("cg/unified/j/memory.pressure", "some avg10=2.00 avg60=0\nfull avg10=1.00 avg60=0\n"),
];

#[test]
fn the_scarcer_of_host_and_cgroups_counts() {
    let rows: [Row; 8] = [
        (
            "a host alone",
            &[&[MEMINFO, PSI]],
            "host: 500 of 1000 MiB; pressure 1.5 % (full 0.3 %)",
            (500, 1000, 15, 3),
        ),
        ("a host without PSI", &[&[MEMINFO]], "host: 500 of 1000 MiB", (500, 1000, 0, 0)),
        (
            "version 2 with its own pressure",
            &[
                &[MEMINFO, PSI, MOUNTS_V2],
                &[
                    ("proc/7/cgroup", "0::/system.slice/jujud.service\n"),
                    ("cg 1/system.slice/jujud.service/memory.max", "536870912\n"),
                    ("cg 1/system.slice/jujud.service/memory.current", "530579456\n"),
                    (
                        "cg 1/system.slice/jujud.service/memory.stat",
                        "anon 5\ninactive_file 98566144\nactive_file 7\n",
                    ),
                    (
                        "cg 1/system.slice/jujud.service/memory.pressure",
                        "some avg10=31.00 avg60=0\nfull avg10=0.00 avg60=0\n",
                    ),
                    ("cg 1/system.slice/memory.max", "max\n"),
                    ("cg 1/system.slice/memory.current", "600000000\n"),
                ],
            ],
            "jujud's cgroup /system.slice/jujud.service: 412 of 512 MiB; host: 500 of 1000 MiB; pressure 31.0 % (full \
             0.3 %)",
            (412, 512, 310, 3),
        ),
        (
            "an ancestor with more left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "104857600\n")]],
            "jujud's cgroup /a.slice/b.service: 80 of 100 MiB; host: 500 of 1000 MiB",
            (80, 100, 0, 0),
        ),
        (
            "an ancestor with as much left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "167772160\n")]],
            "jujud's cgroup /a.slice/b.service: 80 of 100 MiB; host: 500 of 1000 MiB",
            (80, 100, 0, 0),
        ),
        (
            "an ancestor with less left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "188743680\n")]],
            "jujud's cgroup /a.slice: 180 of 200 MiB; host: 500 of 1000 MiB",
            (180, 200, 0, 0),
        ),
        (
            "version 1 beside version 2",
            &[&[MEMINFO], &V1],
            "jujud's cgroup /j: 90 of 100 MiB; host: 500 of 1000 MiB; pressure 2.0 % (full 1.0 %)",
            (90, 100, 20, 10),
        ),
        (
            "version 1 without a limit",
            &[&[MEMINFO], &V1, &[("cg/memory/j/memory.limit_in_bytes", NONE_V1)]],
            "host: 500 of 1000 MiB; pressure 2.0 % (full 1.0 %)",
            (500, 1000, 20, 10),
        ),
    ];
    for (what, files, words, (used, max, some_permille, full_permille)) in rows {
        let usage = Fake::new(&files.concat()).gauge(7).read();
        assert_eq!(usage.words, words, "{what}");
        let reading = Reading { used: used * MIB, max: max * MIB, some_permille, full_permille };
        assert_eq!(usage.reading, reading, "{what}");
    }
}

#[test]
fn nothing_at_all_is_no_shortage() {
    let fake = Fake::new(&[]);
    assert_eq!(fake.gauge(1).read(), Usage::default());
    for (name, text) in [("proc/meminfo", "MemTotal: many kB\n"), ("proc/pressure/memory", "some avg10=x\n")]
    {
        fake.put(name, text);
    }
    fake.put("proc/mounts", "cgroup2");
    fake.put("proc/1/cgroup", "::\n0\n0::/../x\n");
    assert_eq!(fake.gauge(1).read(), Usage::default());
}

#[test]
fn a_cgroup_outlives_its_process() {
    let fake = Fake::new(&[
        MEMINFO,
        MOUNTS_V2,
        ("proc/7/cgroup", "0::/j\n"),
        ("cg 1/j/memory.max", "104857600\n"),
        ("cg 1/j/memory.current", "94371840\n"),
    ]);
    let mut gauge = fake.gauge(7);
    fs::remove_dir_all(fake.0.path().join("proc/7")).unwrap();
    assert!(!gauge.follow(7));
    assert!(gauge.follows() && gauge.read().words.starts_with("jujud's cgroup /j: 90 of 100 MiB; host"));
    fs::remove_dir_all(fake.0.path().join("cg 1/j")).unwrap();
    assert_eq!(gauge.read().words, "host: 500 of 1000 MiB");
}

#[test]
fn this_host_has_memory() {
    let mut gauge = Gauge::new("/proc");
    gauge.follow(std::process::id());
    let usage = gauge.read();
    assert!(usage.reading.max > 0 && usage.reading.used > 0, "{usage:?}");
    assert!((1..1000).contains(&usage.reading.permille()), "{usage:?}");
}
