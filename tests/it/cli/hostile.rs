//! Documents that nobody sane would write: each is answered, and none brings the program down.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Tree, without_ms};

#[test]
fn hostile_documents_are_invalid_input() {
    let tree = Tree::new();
    let nested = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let op = r#"{"op":"write","path":"a","text":"x"}"#;
    let mut lines: Vec<Vec<u8>> = [
        nested("[", "]"),
        nested("{\"ops\":", "}"),
        format!(r#"{{"ops":[{}]}}"#, nested("[", "]")),
        format!(r#"{{"ops":[{op}],"x":{}}}"#, nested("[", "]")),
        format!(r#"{{"id":"a","id":"b","ops":[{op}]}}"#),
        format!(r#"{{"ops":[{op}],"ops":[]}}"#),
        r#"{"ops":[{"op":"write","path":"a","path":"b","text":"x"}]}"#.to_owned(),
        format!(r#"{{"ops":[{{"op":"patch","path":"a","offset":{},"text":"x"}}]}}"#, "9".repeat(100_000)),
        r#"{"ops":[{"op":"patch","path":"a","offset":1e999999999,"text":"x"}]}"#.to_owned(),
        r#"{"ops":[{"op":"write","path":"a","text":"\ud800"}]}"#.to_owned(),
        r#"{"ops":[{"op":"write","path":["a"],"text":"x"}]}"#.to_owned(),
        r#"{"ops":[{"op":"write","path":{"base64":"?"},"text":"x"}]}"#.to_owned(),
        r#"{"ops":[{"op":"write","path":"a","base64":"eA"}]}"#.to_owned(),
        r#"{"ops":[{"op":["write"],"path":"a","text":"x"}]}"#.to_owned(),
        r#"{"ops":[null]}"#.to_owned(),
        r#"{"ops":null}"#.to_owned(),
        r#"{"ops":[],"label":5}"#.to_owned(),
        r#"{"ops":[],"symlinks":"Follow"}"#.to_owned(),
        r#"{"ops":[]}{"ops":[]}"#.to_owned(),
        "\u{feff}{\"ops\":[]}".to_owned(),
        "null".to_owned(),
        "\"\\".to_owned(),
    ]
    .map(String::into_bytes)
    .into();
    lines.push(b"{\"ops\":[{\"op\":\"write\",\"path\":\"a\",\"text\":\"\xff\"}]}".to_vec());
    lines.push(b"{\"ops\":[{\"op\":\"write\",\"path\":\"\xc3\x28\",\"text\":\"x\"}]}".to_vec());
    lines.push(vec![0; 100]);
    lines.push(b"\xff\xfe".to_vec());

    let ran = tree.run_on(&["batch"], &lines.join(&b'\n'));
    assert_eq!((ran.status, ran.err.as_str()), (1, ""));
    assert_eq!(ran.out.lines().count(), lines.len());
    for (index, answer) in ran.out.lines().enumerate() {
        let expected = format!(r#"{{"line":{},"ok":false,"error":"invalid_input","message":""#, index + 1);
        assert!(answer.starts_with(&expected), "{answer}");
        assert!(answer.len() < 1000, "an answer does not repeat the question: {} bytes", answer.len());
    }
    assert!(!tree.path("a").exists());
    for line in &lines {
        let ran = tree.run_on(&["--json", "apply", "-"], line);
        assert_eq!(ran.status, 1);
        assert!(ran.out.starts_with(r#"{"line":1,"ok":false,"error":"invalid_input""#), "{}", ran.out);
    }
}

#[test]
fn names_that_are_not_utf8_go_in_and_come_out_in_base64() {
    let tree = Tree::new();
    let name = Path::new(std::ffi::OsStr::from_bytes(b"d/\xff"));
    // "ZC//" is d/ and the byte 0xff.
    let ran = tree.apply(r#"{"id":"n","ops":[{"op":"write","path":{"base64":"ZC//"},"text":"x"}]}"#);
    assert_eq!(without_ms(&ran.out), r#"{"id":"n","ok":true,"tx":1,"files":2,"ms":#}"#);
    assert_eq!(std::fs::read(tree.dir.path().join(name)).unwrap(), b"x");
    let ran = tree.apply(r#"{"id":"n","ops":[{"op":"expect","path":{"base64":"ZC//"},"absent":true}]}"#);
    let begin = r#"{"id":"n","ok":false,"error":"conflict","path":{"base64":"ZC//"},"message":""#;
    assert!(ran.out.starts_with(begin), "{}", ran.out);
    let shown = tree.run(&["--json", "show", "1"]).out;
    assert!(shown.contains(r#"{"path":{"base64":"ZC//"},"after":{"kind":"file","#), "{shown}");
    // In both places of a rename, and back to a name that is text.
    let ran = tree.apply(r#"{"ops":[{"op":"rename","from":{"base64":"ZC//"},"to":{"base64":"YQ=="}}]}"#);
    assert_eq!((ran.status, tree.read("a").as_str()), (0, "x"));
}
