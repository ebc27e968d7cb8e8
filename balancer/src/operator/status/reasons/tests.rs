use super::*;
use crate::operator::status::table::tests::status;

fn changed(change: impl FnOnce(&mut Status)) -> Status {
    let mut status = status();
    change(&mut status);
    status
}

#[test]
fn all_is_well() {
    let status = status();
    assert_eq!(reasons(&status), []);
    assert_eq!(headline(&[]), "OK");
}

#[test]
#[rustfmt::skip] // a row a line
fn each_reason_is_told_with_a_remedy() {
    let absent = "no client is relayed to b: no report arrives from it; is its host down?";
    let all_absent = |status: &mut Status| {
        for one in &mut status.controllers[1..] { one.state = "absent".into(); }
    };
    let bypass = |all, left_s| move |s: &mut Status| s.balance.bypass = Some(Bypassed { all, left_s });
    let silent = |word: &str| { let word = word.to_owned(); move |s: &mut Status| { s.controllers[1].state = "absent".into(); s.controllers[1].silence = Some(word); s.not_relayed.push(absent.into()); } };
    let rows: Vec<(Status, Cause, &str, &str)> = vec![
        (changed(silent("stopped")), Cause::PeerAbsent, "DEGRADED: the agent on b is stopped", absent),
        (changed(silent("crashed")), Cause::PeerAbsent, "DEGRADED: the agent on b has crashed or hangs", absent),
        (changed(silent("cut-off")), Cause::PeerAbsent, "DEGRADED: b is down or cut off", absent),
        (changed(bypass(false, Some(3_600))), Cause::Bypass, "DEGRADED: bypassed, 60 min left", "the limits hold; `balancer on`"),
        (changed(bypass(true, None)), Cause::Bypass, "DEGRADED: bypassed, until `balancer on`", "no limit holds"),
        (changed(|s| { bypass(true, None)(s); s.hard_limit = 3; s.not_relayed.push("no client is relayed over IPv4: bypassed".into()); }), Cause::Bypass, "DEGRADED: bypassed, until `balancer on`", "no limit holds"),
        (changed(|s| s.ready = false), Cause::Jujud, "DEGRADED: jujud is not ready", "systemctl status"),
        (changed(|s| s.hard_limit = 20), Cause::Limit, "DEGRADED: limit of 20 reached", "raise api.hard_limit"),
        (changed(|s| s.hard_limit = 3), Cause::Limit, "DEGRADED: limit of 3 reached", "add a controller"),
        (changed(|s| s.balance.memory_stage = "lower-weight".into()), Cause::Memory, "DEGRADED: memory runs short", "memory: "),
        (changed(|s| { s.balance.memory_stage = "refuse".into(); s.hard_limit = 20; }), Cause::Memory, "DEGRADED: no memory for new clients", "memory: "),
        (changed(all_absent), Cause::Alone, "DEGRADED: alone, no other controller is heard", "block UDP 17078"),
        (changed(|s| { s.controllers[1].state = "absent".into(); s.not_relayed.push(absent.into()); }), Cause::PeerAbsent, "DEGRADED: b is not heard", absent),
        (changed(|s| s.controllers[1].state = "absent".into()), Cause::PeerAbsent, "DEGRADED: b is not heard", "b is not heard"),
        (changed(|s| s.controllers[1].state = "not-ready".into()), Cause::PeerNotReady, "DEGRADED: jujud on b is not ready", "`balancer status` there"),
        (changed(|s| s.controllers[2].hears = Some(false)), Cause::OneWay, "DEGRADED: c does not hear this controller", "block UDP 17078"),
        (changed(|s| s.controllers[2].version = None), Cause::OtherVersion, "DEGRADED: c runs an earlier version", "upgrade all"),
        (changed(|s| s.controllers[2].version = Some("9.0".into())), Cause::OtherVersion, "DEGRADED: c runs balancer 9.0", "upgrade all"),
        (changed(|s| s.displaced.push("somebody has removed ingress".into())), Cause::Hook, "DEGRADED: hook missing", "removed ingress"),
        (changed(|s| s.not_relayed.push("no client is relayed to b over IPv4: it refuses; open it".into())), Cause::NotRelayed, "DEGRADED: no client is relayed to b over IPv4", "; open it"),
        (changed(|s| s.configuration.refused = Some("api.prot: no".into())), Cause::Reload, "DEGRADED: new configuration refused", "stays as it was: api.prot"),
        (changed(|s| s.last_minute.client_full = 4), Cause::ClientLimit, "DEGRADED: clients above the per-client limit", "4 clients were refused"),
        (changed(|s| s.last_minute.flood = 4), Cause::Flood, "DEGRADED: flood of new clients", "api.deny"),
        (changed(|s| s.last_minute.wrong_key = 4), Cause::WrongKey, "DEGRADED: a controller has another key", "the same key"),
        (changed(|s| s.metrics_fault = Some("the port is in use; end".into())), Cause::Metrics, "DEGRADED: metrics are not served", "in use; end"),
        (changed(|s| s.bounds.push("more than 4 addresses: no".into())), Cause::Bound, "DEGRADED: more than 4 addresses", "more than 4"),
    ];
    for (status, cause, first, remedy) in rows {
        let found = reasons(&status);
        assert_eq!(found[0].cause, cause, "{found:?}");
        assert_eq!(headline(&found), first);
        assert!(found[0].sentence.contains(remedy), "{found:?}");
    }
}

#[test]
fn the_list_of_causes_is_complete_and_the_schema_has_it() {
    assert_eq!(Cause::ALL.len(), Cause::Other as usize);
    let schema = include_str!("../../../../../docs/status.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let listed = &schema["properties"]["reasons"]["items"]["properties"]["cause"]["enum"];
    assert_eq!(*listed, serde_json::json!(Cause::ALL.map(Cause::name)));
}

#[test]
fn a_controller_that_has_yet_to_report_has_no_version() {
    let status = changed(|s| (s.controllers[2].version, s.controllers[2].age_ms) = (None, None));
    assert_eq!(reasons(&status), []);
}

#[test]
fn orders_of_the_operator_are_no_fault() {
    let rows = [
        changed(|s| {
            s.balance.drain_left_s = Some(9);
            s.hard_limit = 20;
        }),
        changed(|s| s.controllers[1].state = "draining".into()),
        changed(|s| s.controllers[1].state = "leaving".into()),
        changed(|s| s.last_minute.closed = 4),
    ];
    for status in rows {
        assert_eq!(reasons(&status), [], "{status:?}");
    }
}

#[test]
fn the_worst_comes_first_and_a_controller_alone_names_no_other() {
    use Cause::{Alone, Flood, Jujud, PeerAbsent};

    let status = changed(|s| {
        s.last_minute.flood = 1;
        s.controllers[1].state = "absent".into();
        s.controllers[2].state = "absent".into();
        s.ready = false;
    });
    let found = reasons(&status);
    let causes: Vec<_> = found.iter().map(|reason| reason.cause).collect();
    assert_eq!(causes, [Jujud, Alone, PeerAbsent, PeerAbsent, Flood]);
    assert_eq!(headline(&found), "DEGRADED: jujud is not ready; alone, no other controller is heard; 1 more");
    let newer: Cause = serde_json::from_str("\"of-tomorrow\"").unwrap();
    assert_eq!(newer, Cause::Other);
}
