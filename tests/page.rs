//! The page of the report, in a real browser.
#![allow(missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{prune_reviews, text};

fn page(folder: &Path) -> PathBuf {
    let page = folder.join("report.html");
    prune_reviews(&folder.join("out.onnx"), &["--sweep", "0.3,0.6", "--report", page.to_str().unwrap()]);
    page
}

fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()));
    if found.is_none() {
        eprintln!("skipped: no Chromium");
    }
    found
}

fn run(browser: &str, page: &Path, more: &[String]) -> Vec<u8> {
    let profile = tempfile::tempdir().unwrap();
    let done = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    done.stdout
}

/// Different colours of a picture, by how often they come.
fn colors(picture: &image::RgbImage) -> Vec<([u8; 3], usize)> {
    let mut counts = std::collections::HashMap::new();
    picture.pixels().for_each(|p| *counts.entry(p.0).or_insert(0) += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|c| std::cmp::Reverse(c.1));
    counts
}

#[test]
fn a_browser_draws_it_at_two_widths_in_light_and_dark() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = page(folder.path());
    for (width, scheme) in [(1200, 1), (390, 1), (1200, 0)] {
        let shot = folder.path().join(format!("{width}-{scheme}.png"));
        let more = [
            format!("--window-size={width},2400"),
            format!("--screenshot={}", shot.display()),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ];
        run(browser, &page, &more);
        let picture = image::open(&shot).unwrap().to_rgb8();
        assert_eq!(picture.width(), width);
        let colors = colors(&picture);
        let light = |c: [u8; 3]| c.iter().map(|&x| u32::from(x)).sum::<u32>() > 3 * 128;
        assert_eq!(light(colors[0].0), scheme == 1, "the page is as light as was asked for: {:?}", colors[0]);
        let is_drawn = |like: [u8; 3]| {
            colors.iter().any(|(c, n)| *n > 200 && c.iter().zip(like).all(|(&a, b)| a.abs_diff(b) < 12))
        };
        let [head, neuron] = match scheme {
            1 => [[0x2b, 0x6c, 0xc4], [0xc8, 0x62, 0x1b]],
            _ => [[0x6e, 0xa8, 0xf5], [0xf0, 0x95, 0x4f]],
        };
        assert!(is_drawn(head) && is_drawn(neuron), "heads and neurons are drawn at {width}");
    }
}

#[test]
fn nothing_reaches_over_the_edge_of_a_phone() {
    let Some(browser) = browser() else { return };
    let folder = tempfile::tempdir().unwrap();
    page(folder.path());
    let framed = folder.path().join("framed.html");
    // Headless windows are never narrower than some 500 pixels; a frame is.
    let script = "<iframe src='report.html' width=390 height=6000 onload=\"document.title = \
        this.contentDocument.documentElement.scrollWidth\"></iframe>";
    std::fs::write(&framed, script).unwrap();
    let document = text(&run(browser, &framed, &["--allow-file-access-from-files".into(), "--dump-dom".into()]));
    assert!(document.contains("<title>390</title>"), "{}", &document[..300.min(document.len())]);
}

#[test]
fn it_needs_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let content = std::fs::read_to_string(page(folder.path())).unwrap();
    for foreign in ["http:", "https:", "<script", "<link", "src=", "@import", "url("] {
        assert!(!content.contains(foreign), "{foreign}");
    }
    for section in [
        "Compression against quality",
        "Speed against quality",
        "What to do next",
        "called as",
        "SHA-256",
        "layer 0 attention",
        "What stays",
        "Importance of heads",
        "Importance of neurons",
        "Reconstruction error before and after tuning",
        "What the run cost",
        "Settings",
        "What was not pruned",
        "set aside",
    ] {
        assert!(content.contains(section), "{section}");
    }
    let mut titles: Vec<&str> =
        content.split("<h2>").skip(1).map(|rest| rest.split("</h2>").next().unwrap_or_default()).collect();
    titles.sort_unstable();
    assert!(titles.windows(2).all(|pair| pair[0] != pair[1]), "a section twice: {titles:?}");
}

#[test]
fn answers_that_changed_are_shown_with_their_text_and_the_names_of_classes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.onnx", "tokenizer.json"] {
        std::fs::copy(support::reviews().join(name), folder.path().join(name)).unwrap();
    }
    let classes = serde_json::json!({"id2label": {"0": "sour <0>", "1": "sweet"}});
    std::fs::write(folder.path().join("config.json"), classes.to_string()).unwrap();
    let run = support::program()
        .current_dir(folder.path())
        .args(["model.onnx", "out.onnx", "--compression", "0.9", "--report", "r.html", "--report", "r.json"])
        .arg("--calibration")
        .arg(support::reviews().join("calibration.jsonl"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("r.json")).unwrap()).unwrap();
    let changed = report["quality"]["changed"].as_array().expect("a tenth of the FLOPs is too little for all answers");
    let title = changed[0]["title"].as_str().unwrap();
    assert!(title.len() > 10, "{title}");
    let page = std::fs::read_to_string(folder.path().join("r.html")).unwrap();
    assert!(
        page.contains("sour &lt;0&gt;") && page.contains("sweet") && page.contains(title.split('"').next().unwrap())
    );
}
