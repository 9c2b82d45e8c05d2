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

    /// Starts a stage of `objects` objects (0: not known yet).
    pub fn begin(&self, name: StageName, objects: u64) -> Stage {
        let meter = Arc::new(Meter::default());
        let bar = self.bars.then(|| draw(name, objects, meter.clone()));
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

fn draw(name: StageName, objects: u64, meter: Arc<Meter>) -> (ProgressBar, tokio::task::JoinHandle<()>) {
    let bar = if objects > 0 { ProgressBar::new(objects) } else { ProgressBar::new_spinner() };
    let template = if objects > 0 {
        "{prefix:>8} {wide_bar} {pos}/{len} objects  {msg}  {eta} left"
    } else {
        "{prefix:>8} {spinner} {pos} objects  {msg}  {elapsed}"
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
    bar.set_prefix(name.name());
    let drawn = bar.clone();
    let started = Instant::now();
    let drawing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let per_second = meter.bytes() as f64 / started.elapsed().as_secs_f64();
            drawn.set_position(meter.objects());
            drawn.set_message(format!("{} rows  {}/s", HumanCount(meter.rows()), HumanBytes(per_second as u64)));
        }
    });
    (bar, drawing)
}
