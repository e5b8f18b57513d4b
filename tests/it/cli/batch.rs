//! `atomtree batch` as a long conversation: order, promptness, bad lines, many jobs, and a partner who leaves.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{PATIENCE, Tree, without_ms};

fn write(id: &str, path: &str, text: &str) -> String {
    format!(r#"{{"id":"{id}","ops":[{{"op":"write","path":"{path}","text":"{text}"}}]}}"#)
}

/// Goal: an answer never waits for more input. Method: nothing is said before the last answer has been read; a program
/// that holds anything back stands still here.
#[test]
fn each_answer_comes_before_the_next_question() {
    for jobs in [[].as_slice(), &["--jobs", "4"]] {
        let tree = Tree::new();
        let mut batch = tree.batch(jobs);
        for round in 1..=20 {
            batch.say(&write(&format!("r{round}"), "a", &round.to_string()));
            let answer = format!(r#"{{"id":"r{round}","ok":true,"tx":{round},"files":1,"ms":#}}"#);
            assert_eq!(batch.answer(), answer);
            assert_eq!(tree.read("a"), round.to_string(), "it is in place when it is answered");
            batch.say("no JSON");
            assert!(batch.answer().contains("invalid_input"));
        }
        assert_eq!(batch.end(), 1);
    }
}

#[test]
fn bad_lines_are_answered_by_number_and_the_rest_goes_on() {
    let tree = Tree::new();
    let lines = [
        write("first", "a", "1"),
        String::new(),
        " \t\r".to_owned(),
        "{\"id\":\"bad\",".to_owned(),
        write("too long", "a", &"x".repeat(5000)),
        r#"{"ops":[{"op":"append","path":"a","text":"2"}]}"#.to_owned(),
        r#"{"id":"gone","ops":[{"op":"remove","path":"none"}]}"#.to_owned(),
        r#"{"id":7,"ops":[]}"#.to_owned(),
        r#"{"id":"twice","ops":[{"op":"append","path":"a","text":"3"}]}"#.to_owned(),
    ];
    // Without a line feed at the end.
    let input = lines.join("\n");
    let ran = tree.run_on(&["batch", "--max-line-bytes", "1000"], input.as_bytes());
    let answers: Vec<_> = ran.out.lines().map(without_ms).collect();
    let begins = [
        r#"{"id":"first","ok":true,"tx":1,"files":1,"ms":#}"#,
        r#"{"line":4,"ok":false,"error":"invalid_input","message":"not a transaction document: EOF while parsing"#,
        r#"{"line":5,"ok":false,"error":"invalid_input","message":"the line is longer than 1000 bytes"#,
        r#"{"line":6,"ok":true,"tx":2,"files":1,"ms":#}"#,
        r#"{"id":"gone","ok":false,"error":"not_found","path":"none","message":"none: no such file"}"#,
        r#"{"line":8,"ok":false,"error":"invalid_input","message":"not a transaction document: invalid type: integer `7`"#,
        r#"{"id":"twice","ok":true,"tx":3,"files":1,"ms":#}"#,
    ];
    assert_eq!(answers.len(), begins.len(), "{answers:#?}");
    for (answer, begin) in answers.iter().zip(begins) {
        assert!(answer.starts_with(begin), "{answer}\n{begin}");
    }
    assert_eq!((ran.status, ran.err.as_str(), tree.read("a").as_str()), (1, "", "123"));
}

#[test]
fn a_line_of_any_length_is_skipped_without_being_held() {
    let tree = Tree::new();
    let mut batch = tree.batch(&["--max-line-bytes", "65536"]);
    let input = batch.input.as_mut().unwrap();
    for _ in 0..256 {
        input.write_all(&vec![b'x'; 1 << 20]).unwrap();
    }
    input.write_all(b"\n").unwrap();
    batch.say(&write("next", "a", "1"));
    assert!(batch.answer().starts_with(r#"{"line":1,"ok":false,"error":"invalid_input""#));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", batch.child.id())).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < 64 << 10, "at most {peak_kb} kB were held");
    assert_eq!(batch.answer(), r#"{"id":"next","ok":true,"tx":1,"files":1,"ms":#}"#);
    assert_eq!(batch.end(), 1);
}

/// Goal: with jobs, each transaction is answered once and took effect once, also when all of them want the same file.
#[test]
fn two_hundred_transactions_at_once_are_all_carried_out() {
    let tree = Tree::new();
    let document = |number: u64| {
        let own = format!(r#"{{"op":"write","path":"d{}/f{number}","text":"{number}"}}"#, number % 7);
        let shared = format!(r#"{{"op":"append","path":"shared","text":"{number}\n"}}"#);
        format!("{{\"id\":\"t{number}\",\"ops\":[{own},{shared}]}}\n")
    };
    let input: String = (0..200).map(document).collect();
    let ran = tree.run_on(&["batch", "--jobs", "16"], input.as_bytes());
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    let answers: Vec<serde_json::Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all = |of: &dyn Fn(u64) -> String| (0..200).map(of).collect::<BTreeSet<_>>();
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((answers.len(), ids), (200, all(&|number| format!("t{number}"))));
    let transactions: BTreeSet<_> = answers.iter().map(|answer| answer["tx"].as_u64().unwrap()).collect();
    assert_eq!(transactions, (1..=200).collect());
    let shared = tree.read("shared");
    assert_eq!(shared.lines().count(), 200);
    assert_eq!(shared.lines().map(str::to_owned).collect::<BTreeSet<_>>(), all(&|number| number.to_string()));
    for number in 0..200 {
        assert_eq!(tree.read(&format!("d{}/f{number}", number % 7)), number.to_string());
    }
}

/// An expectation that fails is not tried again: waiting cannot mend it.
#[test]
fn of_many_that_expect_the_same_exactly_one_goes_on() {
    let tree = Tree::new();
    let line = r#"{"ops":[{"op":"expect","path":"a","absent":true},{"op":"write","path":"a","text":"x"}]}"#;
    let started = Instant::now();
    let ran = tree.run_on(&["batch", "--jobs", "8"], format!("{line}\n").repeat(100).as_bytes());
    let count = |text: &str| ran.out.lines().filter(|line| line.contains(text)).count();
    assert_eq!(
        (count("\"ok\":true"), count("\"error\":\"conflict\",\"path\":\"a\"")),
        (1, 99),
        "{}",
        ran.out
    );
    assert_eq!(ran.status, 1);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

/// Goal: when nobody reads the answers, the program stops asking, says nothing and ends. Method: an endless input.
#[test]
fn a_reader_who_leaves_ends_it_quietly() {
    for jobs in ["1", "4"] {
        let tree = Tree::new();
        let mut child = tree
            .command(&["batch", "--jobs", jobs])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut input = child.stdin.take().unwrap();
        let (started, mut said) = (Instant::now(), 0);
        while input.write_all(format!("{}\n", write("t", "a", &said.to_string())).as_bytes()).is_ok() {
            said += 1;
            assert!(started.elapsed() < PATIENCE, "it goes on reading");
        }
        let status = child.wait().unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((status.code(), err.as_str()), (Some(0), ""), "jobs {jobs}");
        let verified = tree.run(&["verify"]);
        assert_eq!(verified.status, 0, "{verified:?}");
    }
}

#[test]
fn answers_that_cannot_be_written_are_an_error() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let tree = Tree::new();
    let mut child =
        tree.command(&["batch"]).stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(write("t", "a", "1").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(err.starts_with("atomtree: it is done and durable"), "{err}");
    assert!(err.contains("could not write an answer"), "{err}");
    assert_eq!(tree.read("a"), "1");
}
