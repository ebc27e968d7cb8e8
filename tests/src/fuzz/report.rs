//! Reports of peers, which hold the key but may be of another version, or broken.

use balancer::cluster::peers::Report;

/// A report that was read can be written again, and means the same.
pub fn feed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok((sequence, report)) = Report::decode(text, |name| name != "stranger") else { return };
    assert!(!report.received.contains_key("stranger") && !report.relay_ports.contains_key("stranger"));
    let Ok(told) = report.encode(sequence) else { panic!("not to be told: {report:?}") };
    // Numbers with a fraction may lose their last digit on the way through text.
    let whole = |report: Report| Report { weight: 1.0, arrivals_per_s: 0.0, ..report };
    let (again, reread) = Report::decode(&told, |_| true).expect("what was told");
    assert_eq!((again, whole(reread)), (sequence, whole(report)), "{told}");
}
