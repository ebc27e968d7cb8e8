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
    assert_eq!(gauge.read().words, "");
    fake.put("proc/34/comm", "jujud\n");
    fake.put("proc/34/cgroup", "0::/juju.slice\n");
    gauge.seek();
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

/// A name, the files of a host, its words, then its reading: left and total in MiB, `some` and `full` in permille.
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
    ("cg/memory/j/memory.stat", "inactive_file 1\ntotal_inactive_file 6291456\ntotal_active_file 4194304\n"),
    ("cg/unified/j/memory.pressure", "some avg10=2.00 avg60=0\nfull avg10=1.00 avg60=0\n"),
];

fn check(rows: &[Row]) {
    for &(what, files, words, (left, total, some_permille, full_permille)) in rows {
        let usage = Fake::new(&files.concat()).gauge(7).read();
        assert_eq!(usage.words, words, "{what}");
        let room = Some(Room { headroom: left * MIB, total: total * MIB });
        let reading = Reading { room, some_permille, full_permille };
        assert_eq!(usage.reading, reading, "{what}");
    }
}

#[test]
fn the_scarcer_of_host_and_cgroups_counts() {
    let rows: [Row; 8] = [
        (
            "a host alone",
            &[&[MEMINFO, PSI]],
            "host: 500 of 1000 MiB left; pressure 1.5 % (full 0.3 %)",
            (500, 1000, 15, 3),
        ),
        ("a host without PSI", &[&[MEMINFO]], "host: 500 of 1000 MiB left", (500, 1000, 0, 0)),
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
                        "anon 5\ninactive_file 50331648\nactive_file 40000000\nslab_reclaimable 8234496\n",
                    ),
                    (
                        "cg 1/system.slice/jujud.service/memory.pressure",
                        "some avg10=31.00 avg60=0\nfull avg10=0.00 avg60=0\n",
                    ),
                    ("cg 1/system.slice/memory.max", "max\n"),
                    ("cg 1/system.slice/memory.current", "600000000\n"),
                ],
            ],
            "jujud's cgroup /system.slice/jujud.service: 100 of 512 MiB left; host: 500 of 1000 MiB left; pressure 31.0 % (full \
             0.3 %)",
            (100, 512, 310, 3),
        ),
        (
            "an ancestor with more left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "104857600\n")]],
            "jujud's cgroup /a.slice/b.service: 20 of 100 MiB left; host: 500 of 1000 MiB left",
            (20, 100, 0, 0),
        ),
        (
            "an ancestor with as much left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "188743680\n")]],
            "jujud's cgroup /a.slice/b.service: 20 of 100 MiB left; host: 500 of 1000 MiB left",
            (20, 100, 0, 0),
        ),
        (
            "an ancestor with less left",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/memory.current", "199229440\n")]],
            "jujud's cgroup /a.slice: 10 of 200 MiB left; host: 500 of 1000 MiB left",
            (10, 200, 0, 0),
        ),
        (
            "version 1 beside version 2",
            &[&[MEMINFO], &V1],
            "jujud's cgroup /j: 10 of 100 MiB left; host: 500 of 1000 MiB left; pressure 2.0 % (full 1.0 %)",
            (10, 100, 20, 10),
        ),
        (
            "version 1 without a limit",
            &[&[MEMINFO], &V1, &[("cg/memory/j/memory.limit_in_bytes", NONE_V1)]],
            "host: 500 of 1000 MiB left; pressure 2.0 % (full 1.0 %)",
            (500, 1000, 20, 10),
        ),
    ];
    check(&rows);
}

#[test]
fn caches_and_huge_pages_are_no_use() {
    let rows: [Row; 4] = [
        (
            "62 of 64 GiB in huge pages",
            &[&[(
                "proc/meminfo",
                "MemTotal: 67108864 kB\nMemAvailable: 1433600 kB\nHugePages_Free: 31744\nHugetlb: 65011712 kB\n",
            )]],
            "host: 1400 of 2048 MiB left",
            (1400, 2048, 0, 0),
        ),
        (
            "the ARC of ZFS",
            &[
                &[MEMINFO],
                &[(
                    "proc/spl/kstat/zfs/arcstats",
                    "13 1 0x01 123 33456 7 8\nname type data\nc_min 4 104857600\nsize 4 419430400\narc_size_x 4 9\n",
                )],
            ],
            "host: 800 of 1000 MiB left",
            (800, 1000, 0, 0),
        ),
        (
            "page cache that fills a cgroup of version 1",
            &[
                &[MEMINFO],
                &V1,
                &[(
                    "cg/memory/j/memory.stat",
                    "total_rss 3145728\ntotal_inactive_file 52428800\ntotal_active_file 49283072\n",
                )],
            ],
            "jujud's cgroup /j: 97 of 100 MiB left; host: 500 of 1000 MiB left; pressure 2.0 % (full 1.0 %)",
            (97, 100, 20, 10),
        ),
        (
            "memory.high",
            &[&[MEMINFO, MOUNTS_V2], &V2_SLICE, &[("cg 1/a.slice/b.service/memory.high", "94371840\n")]],
            "jujud's cgroup /a.slice/b.service: 10 of 90 MiB left; host: 500 of 1000 MiB left",
            (10, 90, 0, 0),
        ),
    ];
    check(&rows);
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
    assert!(gauge.read().words.starts_with("jujud's cgroup /j: 10 of 100 MiB left; host"));
    fs::remove_dir_all(fake.0.path().join("cg 1/j")).unwrap();
    assert_eq!(gauge.read().words, "host: 500 of 1000 MiB left");
}

#[test]
fn the_process_is_read_until_it_ends() {
    let stat = |started: u64, pages: u64| {
        format!(
            "7 (jujud ) (x) S 1 7 7 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 {started} 999 {pages} 18446744073709551615 1\n"
        )
    };
    let fake = Fake::new(&[
        ("proc/7/stat", &stat(4_321, 1_000)),
        (
            "proc/7/limits",
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            64000                64000                files     \n",
        ),
    ]);
    let mut gauge = fake.gauge(7);
    let resident = 1_000 * rustix::param::page_size() as u64;
    assert_eq!(gauge.read().process, Some(Process { started: 4_321, resident }));
    assert_eq!(gauge.open_files(), Some(64_000));
    fake.put("proc/7/limits", "Max open files            unlimited            unlimited            files\n");
    assert_eq!(gauge.open_files(), None);
    // Another process has its number now.
    fake.put("proc/7/stat", &stat(9_999, 5));
    assert_eq!((gauge.read().process, gauge.open_files()), (None, None));
    for (name, text) in [
        ("proc/8/comm", "jujud\n"),
        ("proc/8/stat", &stat(10_000, 6)),
        ("proc/8/limits", "Max open files  1024  4096  files\n"),
    ] {
        fake.put(name, text);
    }
    gauge.seek();
    assert_eq!(
        (gauge.read().process.map(|process| process.started), gauge.open_files()),
        (Some(10_000), Some(1_024))
    );
}

#[test]
fn of_several_jujuds_the_one_in_the_cgroup_is_followed() {
    let fake = Fake::new(&[
        ("proc/mounts", "none ROOT/cg cgroup2 rw 0 0\n"),
        ("proc/7/cgroup", "0::/juju.slice\n"),
        ("proc/8/comm", "jujud\n"),
        ("proc/8/cgroup", "0::/lxc/c1\n"),
        ("proc/9/comm", "jujud\n"),
        ("proc/9/cgroup", "0::/juju.slice\n"),
        ("proc/9/limits", "Max open files  2048  4096  files\n"),
        ("proc/9/stat", "9 (jujud) S 1 7 7 0 -1 0 1 0 0 0 1 1 0 0 20 0 9 0 5 9 9 1 1\n"),
    ]);
    let mut gauge = fake.gauge(7);
    gauge.seek();
    assert_eq!(gauge.open_files(), Some(2_048));
}

#[test]
fn this_host_has_memory() {
    let mut gauge = Gauge::new("/proc");
    gauge.follow(std::process::id());
    let usage = gauge.read();
    let room = usage.reading.room.unwrap();
    assert!((1..room.total).contains(&room.headroom), "{usage:?}");
    assert!(usage.process.unwrap().resident > MIB, "{usage:?}");
    assert!(gauge.open_files().is_some_and(|files| files > 100));
}
