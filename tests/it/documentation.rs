//! The links in README and the pages beside it: every relative link, and every heading that one names, exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::program::Program;

/// Returns the folder of the project.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns README, the changelog and all pages of `docs`, by their path.
fn pages() -> BTreeMap<PathBuf, String> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let pages = pages.chain([root().join("README.md"), root().join("CHANGELOG.md")]);
    pages.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Returns the lines of a page without its blocks of code, in which nothing is a link or a heading.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
            kept.map(|char| if char == ' ' { '-' } else { char }).collect()
        })
        .collect()
}

/// Returns the targets of a page's links.
fn links(page: &str) -> Vec<&str> {
    let parts = prose(page).flat_map(|line| line.split("](").skip(1));
    parts.filter_map(|part| part.split_once(')')).map(|(target, _)| target).collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading_that_are_there() {
    let pages = pages();
    let mut seen = 0;
    for (path, page) in &pages {
        for link in links(page).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => path.clone(),
                file => path
                    .parent()
                    .unwrap()
                    .join(file)
                    .canonicalize()
                    .unwrap_or_else(|_| panic!("{} links to {link}, and there is no such file", path.display())),
            };
            if let Some(anchor) = anchor {
                let page = pages.get(Path::new(&target)).unwrap_or_else(|| panic!("{} is no page", target.display()));
                assert!(
                    anchors(page).contains(anchor),
                    "{} links to {link}, which has no such heading",
                    path.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}

#[test]
fn every_page_can_be_reached_from_the_readme_and_is_short() {
    let pages = pages();
    let mut reached = BTreeSet::new();
    let mut next = vec![root().join("README.md")];
    while let Some(path) = next.pop() {
        if reached.insert(path.clone()) {
            let files = links(&pages[&path]).into_iter().filter(|link| !link.contains("://"));
            let files = files.filter_map(|link| link.split('#').next()).filter(|file| file.ends_with(".md"));
            next.extend(files.map(|file| path.parent().unwrap().join(file).canonicalize().unwrap()));
        }
    }
    for (path, page) in pages.iter().filter(|(path, _)| !path.ends_with("CHANGELOG.md")) {
        assert!(reached.contains(path), "no page links to {}", path.display());
        assert!(page.lines().count() <= 200, "{} is longer than 200 lines", path.display());
    }
}

/// Returns the blocks of code of a page, with the word behind their fence.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').expect("a fence ends its line")).collect()
}

#[tokio::test]
async fn accounts_and_contacts_are_what_preview_prints() {
    let page = fs::read_to_string(root().join("docs/accounts-and-contacts.md")).unwrap();
    assert!(page.lines().count() < 200);
    let mut examples = 0;
    for pair in blocks(&page).chunks(2) {
        let [("sh", command), ("json", expected)] = pair else { panic!("{pair:?} is no example") };
        let (command, input) = command.split_once(" <<'EOF'\n").unwrap();
        let (variables, arguments) = command.split_once("variance-connector ").unwrap();
        let mut program = Program::new(arguments.split(' ')).input(input.strip_suffix("\nEOF").unwrap());
        for variable in variables.split("CONNECTOR_").skip(1) {
            let (name, value) = variable.split_once('=').unwrap();
            // The page quotes what a shell would take apart.
            program = program.env(&format!("CONNECTOR_{name}"), value.trim().trim_matches('\''));
        }
        let ended = program.run().await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let mut message: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"));
        let fields = message.as_object_mut().unwrap();
        fields.remove("libary").unwrap();
        let context = fields["context"].as_object_mut().unwrap();
        context.remove("library").unwrap();
        if context.is_empty() {
            fields.remove("context");
        }
        assert_eq!(message, serde_json::from_str::<Value>(expected).unwrap(), "{command}");
        examples += 1;
    }
    assert_eq!(examples, 6);
}
