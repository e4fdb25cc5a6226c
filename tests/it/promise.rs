//! What README guarantees is what the modules say that they keep, word for word.

/// The documentation of a module, without its line ends.
fn documentation(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_guarantee_and_each_limit_stands_at_the_module_that_keeps_it() {
    let modules = [
        include_str!("../../src/outbox.rs"),
        include_str!("../../src/destination.rs"),
        include_str!("../../src/breaker.rs"),
        include_str!("../../src/shutdown.rs"),
    ]
    .map(documentation);
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## What is guaranteed\n").nth(1).expect("README has a section on the guarantee");
    let section = section.split("\n## ").next().unwrap();
    let points = section
        .split("\n\n")
        .filter(|paragraph| paragraph.starts_with(['*', '>']))
        .flat_map(|list| list.split("\n* ").map(|point| point.split_whitespace().collect::<Vec<_>>().join(" ")));
    let points: Vec<_> = points.collect();
    assert!(points.len() > 10, "{points:#?}");
    for point in points {
        let point = point.trim_start_matches("* ");
        assert_eq!(modules.iter().filter(|module| module.contains(point)).count(), 1, "{point}");
    }
}
