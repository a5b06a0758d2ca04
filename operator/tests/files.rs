//! Following files as editors and scripts change them.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use operator::standalone::watch::{Change, follow};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

struct Followed {
    folder: TempDir,
    changes: mpsc::Receiver<Change>,
    task: JoinHandle<()>,
}

impl Followed {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("members.yaml");
        fs::write(&file, text).unwrap();
        let (change, changes) = mpsc::channel(4);
        let task = tokio::spawn(follow(vec![file], vec![text.to_owned()], change));
        Self { folder, changes, task }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn next(&mut self) -> std::io::Result<String> {
        let change = tokio::time::timeout(Duration::from_secs(30), self.changes.recv()).await;
        change.expect("a change is noticed").expect("it follows until it is told to stop").text
    }

    async fn end(self) {
        drop(self.changes);
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_written_in_place_is_read_again() {
    let mut followed = Followed::new("old");
    fs::write(followed.path("members.yaml"), "new").unwrap();
    assert_eq!(followed.next().await.unwrap(), "new");
    followed.end().await;
}

#[tokio::test]
async fn a_file_that_is_replaced_by_renaming_is_still_followed() {
    let mut followed = Followed::new("old");
    for text in ["new", "newer"] {
        fs::write(followed.path("draft"), text).unwrap();
        fs::rename(followed.path("draft"), followed.path("members.yaml")).unwrap();
        assert_eq!(followed.next().await.unwrap(), text);
    }
    followed.end().await;
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_waited_for() {
    let mut followed = Followed::new("old");
    let path = followed.path("members.yaml");
    let writer = tokio::spawn(async move {
        let mut file = fs::File::create(path).unwrap();
        for line in 0..40 {
            writeln!(file, "- {line}").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let text = followed.next().await.unwrap();
    writer.await.unwrap();
    assert_eq!(text.lines().count(), 40, "half a file was taken for a whole one");
    followed.end().await;
}

#[tokio::test]
async fn a_file_that_is_gone_is_told_once_and_followed_when_it_is_back() {
    let mut followed = Followed::new("old");
    fs::remove_file(followed.path("members.yaml")).unwrap();
    assert_eq!(followed.next().await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    fs::write(followed.path("members.yaml"), "old").unwrap();
    assert_eq!(followed.next().await.unwrap(), "old");
    followed.end().await;
}
