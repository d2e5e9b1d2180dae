//! The Prometheus text format 0.0.4, which every scraper reads, with timestamps.
//!
//! In: families of samples, or what prometheus-client wrote as OpenMetrics (which has no explicit timestamps from it,
//! and names the family of a counter otherwise). Out: text. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;

/// The content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters of the kubelet whose names do not say so.
const WITHOUT_TOTAL: [&str; 1] = ["kubelet_evictions"];

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// Text in the making.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

/// One family: its samples follow each other, as the format wants.
pub(super) struct Family<'a> {
    exposition: &'a mut Exposition,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    begun: bool,
}

impl Exposition {
    /// Begins a family; without a sample nothing is written.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family { exposition: self, name, kind, help, begun: false }
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// One sample. Labels are written in the order given, which is Go's when it is that of the alphabet.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64, time: Option<Timestamp>) -> &mut Self {
        let text = &mut self.exposition.text;
        if !self.begun {
            self.begun = true;
            let kind = match self.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", self.name, self.help, self.name);
        }
        text.push_str(self.name);
        for (n, (label, value)) in labels.iter().enumerate() {
            text.push(if n == 0 { '{' } else { ',' });
            text.push_str(label);
            text.push_str("=\"");
            escape(value, text);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = write!(text, " {}", Number(value));
        if let Some(time) = time {
            let _ = write!(text, " {}", time.as_millisecond());
        }
        text.push('\n');
        self
    }
}

/// A value as Go writes it: `1.5`, `1e+06`, `NaN`, `+Inf`.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(value) = *self;
        if value.is_nan() {
            f.write_str("NaN")
        } else if value.is_infinite() {
            f.write_str(if value > 0.0 { "+Inf" } else { "-Inf" })
        } else {
            // The shortest that reads back as the same number.
            write!(f, "{value}")
        }
    }
}

fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

/// OpenMetrics of prometheus-client as the text format: a counter's family has its samples' name, and there is no end
/// mark.
pub(super) fn from_open_metrics(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // HELP stands before the TYPE that decides its name.
    let mut help: Option<(&str, &str)> = None;
    let mut plain: Option<&str> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').or(Some((rest, "")));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            plain = WITHOUT_TOTAL.into_iter().find(|plain| *plain == name);
            let suffix = if kind == "counter" && plain.is_none() { "_total" } else { "" };
            let kind = match kind {
                "unknown" => "untyped",
                "info" | "stateset" => "gauge",
                other => other,
            };
            if let Some((_, help)) = help.take().filter(|(named, _)| *named == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            match plain.and_then(|name| Some((name, line.strip_prefix(name)?.strip_prefix("_total")?))) {
                Some((name, rest)) => text.extend([name, rest]),
                None => text.push_str(line),
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn samples_are_written_with_labels_and_times() {
        let mut exposition = Exposition::default();
        let time = Some("2026-01-01T00:00:00.25Z".parse().unwrap());
        exposition
            .family("cpu_seconds_total", Kind::Counter, "CPU time")
            .sample(&[("container", "a"), ("pod", "x\"\\\n")], 1.5, time)
            .sample(&[], 1e21, None);
        exposition.family("empty", Kind::Gauge, "Nothing");
        exposition.family("inf", Kind::Gauge, "Much").sample(&[], f64::INFINITY, None);
        assert_eq!(
            exposition.finish(),
            "# HELP cpu_seconds_total CPU time\n# TYPE cpu_seconds_total counter\n\
             cpu_seconds_total{container=\"a\",pod=\"x\\\"\\\\\\n\"} 1.5 1767225600250\n\
             cpu_seconds_total 1000000000000000000000\n# HELP inf Much\n# TYPE inf gauge\ninf +Inf\n"
        );
    }

    #[test]
    fn open_metrics_become_the_text_format() {
        let mut registry = Registry::default();
        let (requests, pods, evictions) =
            (Counter::<u64>::default(), Gauge::<i64>::default(), Counter::<u64>::default());
        requests.inc_by(3);
        registry.register("kubelet_evictions", "Evictions", evictions);
        registry.register("requests", "Requests served", requests);
        registry.register("pods", "Pods now", pods);
        let mut open_metrics = String::new();
        prometheus_client::encoding::text::encode(&mut open_metrics, &registry).unwrap();
        assert_eq!(
            from_open_metrics(&open_metrics),
            "# HELP kubelet_evictions Evictions.\n# TYPE kubelet_evictions counter\nkubelet_evictions 0\n\
             # HELP requests_total Requests served.\n# TYPE requests_total counter\nrequests_total 3\n\
             # HELP pods Pods now.\n# TYPE pods gauge\npods 0\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn a_label_stays_on_its_line(value in ".*", number in proptest::num::f64::ANY) {
            let mut exposition = Exposition::default();
            exposition.family("x", Kind::Gauge, "X").sample(&[("l", &value)], number, None);
            let text = exposition.finish();
            proptest::prop_assert_eq!(text.split('\n').count(), 4);
        }
    }
}
