//! `atomtree demo`: what a newcomer runs first has to work, and to find nothing wrong.

use super::Tree;

#[test]
fn the_demo_finds_nothing_wrong_and_leaves_nothing() {
    let tree = Tree::new();
    let ran = tree.run(&["--json", "demo", "--rounds", "5"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    for (key, value) in [("kills", 5), ("lost", 0), ("mixed", 0), ("displaced", 0)] {
        assert_eq!(found[key], value, "{key}: {}", ran.out);
    }
    assert!(found["acknowledged"].as_u64().is_some_and(|acknowledged| acknowledged > 0), "{}", ran.out);
    let sizes: Vec<_> = found["speed"].as_array().unwrap().iter().map(|speed| &speed["files"]).collect();
    assert_eq!(sizes, [1, 10, 100]);
    let begin = r#"{"ok":true,"kills":5,"acknowledged":"#;
    assert!(ran.out.starts_with(begin), "{}", ran.out);
    assert_eq!(std::fs::read_dir(tree.dir.path()).unwrap().count(), 0);

    let elsewhere = Tree::new();
    let dir = elsewhere.dir.path().to_str().unwrap();
    let ran = tree.run(&["demo", "--rounds", "1", "--dir", dir]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
    assert!(ran.out.contains("killed 1 time:") && ran.out.contains("figures depend"), "{}", ran.out);
}
