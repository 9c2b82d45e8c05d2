//! Progress of the stages: a bar on a terminal, one log line a stage otherwise.
//!
//! Invariant: a bar is no longer than its line, and no log line is written while one stands there (see [`LogBesideBars`]): a bar that
//! wraps, or is written over, cannot be taken away again.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::manifest::{Stage as StageTime, StageName};
use crate::meter::Meter;
use indicatif::{
    HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike,
};

/// Times the stages of a run and shows how far they are.
pub struct Progress {
    bars: bool,
    stages: Vec<StageTime>,
}

/// One running stage; its meter is handed to the work.
pub struct Stage {
    name: StageName,
    /// The only dataset it works on.
    dataset: Option<String>,
    started: Instant,
    pub meter: Arc<Meter>,
    bar: Option<Bar>,
}

/// A drawn bar; it goes with its stage, also when that ends in an error.
struct Bar {
    bar: ProgressBar,
    drawing: tokio::task::JoinHandle<()>,
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.drawing.abort();
        self.bar.finish_and_clear();
        bars().remove(&self.bar);
    }
}

impl Progress {
    pub fn new(bars: bool) -> Self {
        Progress { bars, stages: Vec::new() }
    }

    pub fn begin(&self, name: StageName) -> Stage {
        self.begin_with(name, None)
    }

    /// A stage of one dataset alone.
    pub fn begin_of(&self, name: StageName, dataset: &str) -> Stage {
        self.begin_with(name, Some(dataset.to_owned()))
    }

    fn begin_with(&self, name: StageName, dataset: Option<String>) -> Stage {
        let meter = Arc::new(Meter::default());
        let bar = self.bars.then(|| draw(name, meter.clone()));
        Stage { name, dataset, started: Instant::now(), meter, bar }
    }

    /// Ends a stage: the bar goes, one line stays. Seconds of a stage that runs several times add up.
    pub fn end(&mut self, stage: Stage) {
        let seconds = stage.started.elapsed().as_secs_f64();
        drop(stage.bar);
        // What was not counted is left out.
        let counted = |count: u64| (count > 0).then_some(count);
        let (objects, rows) = (counted(stage.meter.objects()), counted(stage.meter.rows()));
        let bytes = counted(stage.meter.bytes());
        let (name, dataset) = (stage.name.name(), stage.dataset.as_deref());
        let told_seconds = (seconds * 1000.0).round() / 1000.0;
        // A look that found nothing to look at, such as the one for objects that landed late, is no news.
        if stage.name == StageName::Find && objects.is_none() {
            tracing::debug!(stage = name, dataset, seconds = told_seconds, "stage ended");
        } else {
            tracing::info!(stage = name, dataset, objects, rows, bytes, seconds = told_seconds, "stage ended");
        }
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

/// All bars of the process, once there is one; what else is written to stderr must go around them.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

fn bars() -> &'static MultiProgress {
    BARS.get_or_init(|| MultiProgress::with_draw_target(target()))
}

/// The library draws nothing where there is no terminal; whoever asked for bars there gets them all the same.
fn target() -> ProgressDrawTarget {
    match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND),
        false => ProgressDrawTarget::term_like_with_hz(Box::new(NoTerminal), DRAWN_PER_SECOND),
    }
}

const DRAWN_PER_SECOND: u8 = 10;

/// Stderr that is a pipe or a file, and gets what a terminal of 80 columns would.
#[derive(Debug)]
struct NoTerminal;

impl NoTerminal {
    fn move_by(n: usize, direction: char) -> io::Result<()> {
        if n == 0 { Ok(()) } else { write!(io::stderr(), "\u{1b}[{n}{direction}") }
    }
}

impl TermLike for NoTerminal {
    fn width(&self) -> u16 {
        80
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::move_by(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::move_by(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::move_by(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::move_by(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        write!(io::stderr(), "{text}")
    }

    fn clear_line(&self) -> io::Result<()> {
        write!(io::stderr(), "\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Stderr for the log: bars are taken away while a line is written.
pub struct LogBesideBars;

impl Write for LogBesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// Whole: a line in two parts would have a bar in between.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(bytes)),
            None => io::stderr().write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A spinner until the stage knows what lies ahead, then a bar over bytes: objects differ too much in size to tell the time left.
/// The message takes what is left of the line, and is cut there: what matters most stands first in it.
fn draw(name: StageName, meter: Arc<Meter>) -> Bar {
    let style =
        |template| ProgressStyle::with_template(template).expect("the template is well formed").progress_chars("=> ");
    let bar = bars().add(ProgressBar::new_spinner());
    bar.set_style(style("{prefix:>7} {spinner} {wide_msg}"));
    bar.set_prefix(name.name());
    // At once, for whoever waits for the first object.
    bar.set_message(message(&meter, Duration::ZERO));
    let drawn = bar.clone();
    let started = Instant::now();
    let drawing = tokio::spawn(async move {
        let mut is_bar = false;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if meter.bytes_expected() > 0 && !is_bar {
                drawn.set_style(style("{prefix:>7} [{bar:16}] {percent:>3}% {wide_msg}"));
                is_bar = true;
            }
            if is_bar {
                drawn.set_length(meter.bytes_expected());
                drawn.set_position(meter.bytes());
            }
            drawn.set_message(message(&meter, started.elapsed()));
        }
    });
    Bar { bar, drawing }
}

/// How far a stage is. Bytes are counted when an object is done: before the first one there is no speed, and no time left.
fn message(meter: &Meter, elapsed: Duration) -> String {
    let (objects, expected) = (meter.objects(), meter.objects_expected());
    let (bytes, bytes_expected) = (meter.bytes(), meter.bytes_expected());
    let mut parts = vec![match expected {
        0 => format!("{objects} objects"),
        _ => format!("{objects}/{expected} objects"),
    }];
    if bytes > 0 && bytes_expected > bytes {
        let left = elapsed.mul_f64((bytes_expected - bytes) as f64 / bytes as f64);
        parts.push(format!("{:#} left", HumanDuration(left)));
    } else {
        parts.push(format!("{:#}", HumanDuration(elapsed)));
    }
    if meter.rows() > 0 {
        parts.push(format!("{} rows", HumanCount(meter.rows())));
    }
    if bytes > 0 {
        parts.push(format!("{}/s", HumanBytes((bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64)));
    }
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_object_is_done_there_is_no_speed_and_no_time_left() {
        let meter = Meter::default();
        meter.expect(30, 3000);
        meter.add(0, 552_000, 0);
        assert_eq!(message(&meter, Duration::from_secs(10)), "0/30 objects  10s  552,000 rows");
        meter.add(10, 0, 1000);
        assert_eq!(message(&meter, Duration::from_secs(10)), "10/30 objects  20s left  552,000 rows  100 B/s");
        assert_eq!(message(&Meter::default(), Duration::from_secs(1)), "0 objects  1s");
    }
}
