//! Many executions by seeds: `soak KIND COUNT [SEED]`, KIND being read, inspect, prune or data.
//!
//! ONNX Runtime ends the process for some models that are not valid, so a child does the work, and another one goes on
//! behind the case that ended the last. Cases that are worth a look are written to `soak/`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kprune_fuzz::{Bench, Choices, Outcome, encoded, graphs, mutate, read};

/// An execution that takes longer hangs.
const LONGEST: u64 = 20;

/// After so many cases the supervisor says how far it is.
const PROGRESS: u64 = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).and_then(|a| a.parse::<u64>().ok());
    match (arguments.first(), number(1)) {
        (Some(kind), Some(count)) if arguments.get(3).is_none() => supervise(kind, count, number(2).unwrap_or(0)),
        (Some(kind), Some(count)) => work(kind, count, number(2).unwrap_or(0)),
        _ => {
            eprintln!("usage: soak read|inspect|prune|data COUNT [SEED]");
            std::process::exit(2);
        }
    }
}

/// Starts children until all cases from `seed` on are through.
fn supervise(kind: &str, count: u64, seed: u64) {
    let (start, end) = (Instant::now(), seed + count);
    let mut next = seed;
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    while next < end {
        let program = std::env::current_exe().expect("the program knows where it is");
        let mut child = Command::new(program)
            .args([kind, &(end - next).to_string(), &next.to_string(), "child"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let lines = BufReader::new(child.stdout.take().expect("the output is a pipe")).lines();
        for line in lines.map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("at", case)) => {
                    next = case.parse().unwrap_or(next);
                    if next.is_multiple_of(PROGRESS) {
                        println!("at {kind} {next} after {:.0} s: {seen:?}", start.elapsed().as_secs_f64());
                    }
                }
                Some((what, case)) => {
                    *seen.entry(what.into()).or_default() += 1;
                    if what != "done" && what != "refused" {
                        println!("{what} {case}");
                    }
                }
                None => {}
            }
        }
        let ended = child.wait().expect("the child ends");
        if ended.success() {
            break;
        }
        println!("ended {kind} {next}: {ended}");
        *seen.entry("ended".into()).or_default() += 1;
        keep(kind, next);
        next += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{kind}: {count} executions from seed {seed} in {seconds:.0} s, {:.0} a second: {seen:?}",
        count as f64 / seconds
    );
}

/// Writes the model of a case, to be looked at.
fn keep(kind: &str, seed: u64) {
    let _ = std::fs::create_dir_all("soak");
    let _ = std::fs::write(format!("soak/{kind}-{seed}.onnx"), case(kind, &mut Choices::seeded(seed)));
}

/// What a case feeds to the program.
fn case(kind: &str, choices: &mut Choices) -> Vec<u8> {
    let model = encoded(&graphs::graph(choices));
    match kind {
        "read" => match choices.once_in(2) {
            true => mutate::bytes(&model, choices),
            false => mutate::model(&model, choices),
        },
        "inspect" if !choices.once_in(4) => mutate::model(&model, choices),
        _ => model,
    }
}

static STARTED: AtomicU64 = AtomicU64::new(0);

fn work(kind: &str, count: u64, seed: u64) {
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
    let clock = Instant::now();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if clock.elapsed().as_secs() > STARTED.load(Ordering::Relaxed) + LONGEST {
                println!("hang ");
                std::process::exit(3);
            }
        }
    });
    let bench = Bench::new();
    let files = if kind == "data" { data_files() } else { Vec::new() };
    let mut out = std::io::stdout();
    for seed in seed..seed + count {
        STARTED.store(clock.elapsed().as_secs(), Ordering::Relaxed);
        let _ = writeln!(out, "at {seed}");
        let execute = || {
            let mut choices = Choices::seeded(seed);
            match kind {
                "data" => data(&bench, &files, &mut choices),
                _ => {
                    let model = case(kind, &mut choices);
                    match kind {
                        "read" => read(&model),
                        "inspect" => bench.inspect(&model),
                        _ => bench.prune(&model, &mut choices),
                    }
                }
            }
        };
        let _ = match catch_unwind(AssertUnwindSafe(execute)) {
            Ok(Outcome::Done) => writeln!(out, "done {seed}"),
            Ok(Outcome::Refused(why)) => {
                if std::env::var_os("SOAK_REASONS").is_some() {
                    eprintln!("{seed}: {}", why.replace('\n', " "));
                }
                writeln!(out, "refused {seed}")
            }
            Ok(Outcome::Defect(why)) => {
                keep(kind, seed);
                writeln!(out, "defect {kind} {seed}: {}", why.replace('\n', " "))
            }
            Err(_) => {
                keep(kind, seed);
                writeln!(out, "panic {kind} {seed}")
            }
        };
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// Small data files of every kind, with their endings.
fn data_files() -> Vec<(String, Vec<u8>)> {
    let folder = fixtures().join("cases/data");
    let entries = std::fs::read_dir(folder).expect("the cases are there").flatten().map(|e| e.path());
    let read = |path: PathBuf| {
        let ending = path.extension()?.to_str()?.to_string();
        Some((ending, std::fs::read(&path).ok()?))
    };
    let mut files: Vec<(String, Vec<u8>)> = entries.filter_map(read).collect();
    files.sort();
    files
}

fn data(bench: &Bench, files: &[(String, Vec<u8>)], choices: &mut Choices) -> Outcome {
    let (ending, content) = choices.one(files);
    let content = mutate::bytes(content, choices);
    bench.data(ending, &content, &fixtures().join("reviews/model.onnx"))
}
