//! The text of the metrics.

use std::{fmt, sync::Arc, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Kind, Number, Sample, Seen, families};

/// The metrics of `seen` in the text format of Prometheus.
pub fn encode(seen: &Arc<Seen>, now: Instant) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Moment { seen: Arc::clone(seen), now }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Moment {
    seen: Arc<Seen>,
    now: Instant,
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families() {
            let kind = match family.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
            };
            let mut encoder = encoder.encode_descriptor(family.short(), &family.help, None, kind)?;
            for Sample { labels, value } in family.samples(&self.seen, self.now) {
                if labels.is_empty() {
                    write(&mut encoder, family.kind, value)?;
                } else {
                    write(&mut encoder.encode_family(&labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(encoder: &mut MetricEncoder<'_>, kind: Kind, value: Number) -> fmt::Result {
    match (kind, value) {
        (Kind::Gauge, Number::Whole(value)) => encoder.encode_gauge(&value),
        (Kind::Gauge, Number::Real(value)) => encoder.encode_gauge(&value),
        (Kind::Counter, Number::Whole(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (Kind::Counter, Number::Real(value)) => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::operator::status::testing::status;

    #[test]
    fn names_helps_labels_and_values_are_written() {
        let at = Instant::now();
        let mut status = status();
        status.controllers[1].name = "b\"\\".into();
        status.counters.insert("opened".into(), u64::MAX);
        let text = encode(&Arc::new(Seen { at, status }), at + Duration::from_millis(1_500)).unwrap();
        let lines = [
            "# TYPE balancer_connections gauge\nbalancer_connections 20\n",
            "balancer_connections_limit 100\n",
            "balancer_controller_heard_seconds{controller=\"c\"} 1.5",
            "balancer_controller_connections{controller=\"b\\\"\\\\\"} 20\n",
            "balancer_degraded{reason=\"peer-absent\"} 0\n",
            "balancer_healthy 1\n",
            "# HELP balancer_sent_opened_total Packets sent on: Entry: a SYN, relayed with the client's address.\n\
             # TYPE balancer_sent_opened_total counter\nbalancer_sent_opened_total 18446744073709551615\n",
            "balancer_sync_wrong_key_total 0\n",
            "balancer_state_age_seconds 1.5\n",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
