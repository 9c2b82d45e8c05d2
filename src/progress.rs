//! Progress of the stages: a bar on a terminal, one log line a stage otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::manifest::{Stage as StageTime, StageName};
use crate::meter::Meter;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

/// Times the stages of a run and shows how far they are.
pub struct Progress {
    bars: bool,
    stages: Vec<StageTime>,
}

/// One running stage; its meter is handed to the work.
pub struct Stage {
    name: StageName,
    started: Instant,
    pub meter: Arc<Meter>,
    bar: Option<(ProgressBar, tokio::task::JoinHandle<()>)>,
}

impl Progress {
    pub fn new(bars: bool) -> Self {
        Progress { bars, stages: Vec::new() }
    }

    pub fn begin(&self, name: StageName) -> Stage {
        let meter = Arc::new(Meter::default());
        let bar = self.bars.then(|| draw(name, meter.clone()));
        Stage { name, started: Instant::now(), meter, bar }
    }

    /// Ends a stage: the bar goes, one line stays. Seconds of a stage that runs several times add up.
    pub fn end(&mut self, stage: Stage) {
        let seconds = stage.started.elapsed().as_secs_f64();
        if let Some((bar, drawing)) = stage.bar {
            drawing.abort();
            bar.finish_and_clear();
        }
        let (objects, rows) = (stage.meter.objects(), stage.meter.rows());
        let bytes = stage.meter.bytes();
        tracing::info!(
            stage = stage.name.name(),
            objects,
            rows,
            bytes,
            seconds = (seconds * 1000.0).round() / 1000.0,
            "stage ended"
        );
        match self.stages.iter_mut().find(|known| known.name == stage.name) {
            Some(known) => known.seconds += seconds,
            None => self.stages.push(StageTime { name: stage.name, seconds }),
        }
    }

    /// The stages so far, in the order in which they first ran.
    pub fn stages(&self) -> Vec<StageTime> {
        self.stages.clone()
    }
}

/// A spinner until the stage knows what lies ahead, then a bar over bytes: objects differ too much in size to tell the time left.
fn draw(name: StageName, meter: Arc<Meter>) -> (ProgressBar, tokio::task::JoinHandle<()>) {
    let style = |template| ProgressStyle::with_template(template).expect("the template is well formed");
    let bar = ProgressBar::new_spinner();
    bar.set_style(style("{prefix:>8} {spinner} {msg}  {elapsed}"));
    bar.set_prefix(name.name());
    let drawn = bar.clone();
    let started = Instant::now();
    let drawing = tokio::spawn(async move {
        let mut is_bar = false;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (objects, expected) = (meter.objects(), meter.objects_expected());
            if meter.bytes_expected() > 0 && !is_bar {
                drawn.set_style(style("{prefix:>8} [{bar:24}] {percent:>3}%  {msg}  {eta} left"));
                is_bar = true;
            }
            if is_bar {
                drawn.set_length(meter.bytes_expected());
                drawn.set_position(meter.bytes());
            }
            let rate = HumanBytes((meter.bytes() as f64 / started.elapsed().as_secs_f64()) as u64);
            let of = if expected > 0 { format!("{objects}/{expected}") } else { objects.to_string() };
            drawn.set_message(format!("{of} objects  {} rows  {rate}/s", HumanCount(meter.rows())));
        }
    });
    (bar, drawing)
}
