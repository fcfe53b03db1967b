use std::sync::atomic::{AtomicUsize, Ordering};

use plimsoll_model::ImageFileKind;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// Hands out the same bytes whatever is asked for.
struct Fake {
    content: Vec<u8>,
    opened: AtomicUsize,
}

impl Fake {
    fn new(content: &[u8]) -> Arc<Self> {
        Arc::new(Self { content: content.to_vec(), opened: AtomicUsize::new(0) })
    }
}

impl BlobSource for Fake {
    fn copy<'a>(
        &'a self,
        _: Sha256Digest,
        file: &'a mut Partial,
        limit: Bytes,
    ) -> BoxFuture<'a, Result<(), HostError>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        async move {
            for chunk in self.content.chunks(7) {
                tokio::task::yield_now().await;
                file.write_all(chunk).await?;
            }
            file.flush().await?;
            if self.content.len() as u64 > limit.get() { Err("too long".into()) } else { Ok(()) }
        }
        .boxed()
    }
}

fn file(content: &[u8]) -> ImageFile {
    let digest = Sha256Digest(Sha256::digest(content).into());
    ImageFile {
        kind: ImageFileKind::Disk,
        sha256: digest.to_string(),
        size: Bytes(content.len() as u64),
    }
}

fn cache(directory: &Path, source: Arc<Fake>) -> ImageCache {
    ImageCache::open(directory.join("images"), Bytes::ZERO, source).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory.join("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn all_who_ask_share_one_download_and_later_ones_find_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let source = Fake::new(b"a small image");
    let cache = cache(directory.path(), Arc::clone(&source));
    let wanted = file(b"a small image");
    let paths = futures_util::future::join_all((0..20).map(|_| cache.file(&wanted))).await;
    let first = paths[0].clone().unwrap();
    assert!(paths.iter().all(|path| path.as_ref().unwrap() == &first));
    assert_eq!(fs::read(&first).unwrap(), b"a small image");
    assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o444);
    cache.file(&wanted).await.unwrap();
    assert_eq!(source.opened.load(Ordering::SeqCst), 1);
    assert_eq!(names(directory.path()), [wanted.sha256]);
}

#[tokio::test]
async fn another_file_than_asked_for_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let source = Fake::new(b"something else");
    let cache = cache(directory.path(), Arc::clone(&source));
    let cases = [
        (b"what was wished".as_slice(), 14),
        (b"something else", 13),
        (b"something else", 15),
        (b"something else", 0),
    ];
    for (content, size) in cases {
        let wanted = ImageFile { size: Bytes(size), ..file(content) };
        let error = cache.file(&wanted).await.unwrap_err();
        match error.kind() {
            ImageError::Mismatch { .. } => assert_eq!(content, b"what was wished"),
            ImageError::Size { .. } | ImageError::Fetch { .. } => {
                assert_eq!(content, b"something else");
            }
            other => panic!("{other}"),
        }
        assert!(names(directory.path()).is_empty());
    }
    // The failure is not remembered: the right file comes when it is asked for.
    cache.file(&file(b"something else")).await.unwrap();
    let nonsense = ImageFile { sha256: "../../etc/passwd".into(), ..file(b"") };
    let error = cache.file(&nonsense).await.unwrap_err();
    assert!(matches!(error.kind(), ImageError::Checksum(_)), "{error}");
}

#[tokio::test]
async fn what_nothing_uses_is_deleted_after_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(directory.path(), Fake::new(b"image"));
    let wanted = file(b"image");
    let path = cache.file(&wanted).await.unwrap();
    fs::write(directory.path().join("images/README"), "not ours").unwrap();
    let in_use = BTreeSet::from([wanted.sha256]);
    let hour = Duration::from_secs(3600);
    assert_eq!(cache.evict(hour, &BTreeSet::new()).unwrap(), 0);
    assert_eq!(cache.evict(Duration::ZERO, &in_use).unwrap(), 0);
    assert_eq!(cache.evict(Duration::ZERO, &BTreeSet::new()).unwrap(), 1);
    assert!(!path.exists());
    assert_eq!(names(directory.path()), ["README"]);
}

#[tokio::test]
async fn a_half_fetched_file_of_an_earlier_agent_goes_and_a_whole_one_stays() {
    let directory = tempfile::tempdir().unwrap();
    let images = directory.path().join("images");
    fs::create_dir_all(&images).unwrap();
    let wanted = file(b"image");
    fs::write(images.join(&wanted.sha256), b"image").unwrap();
    fs::write(images.join("x.part"), b"im").unwrap();
    let source = Fake::new(b"");
    let cache = cache(directory.path(), Arc::clone(&source));
    assert!(!images.join("x.part").exists());
    cache.file(&wanted).await.unwrap();
    assert_eq!(source.opened.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_is_not_fetched() {
    let directory = tempfile::tempdir().unwrap();
    let source = Fake::new(b"image");
    let reserve = Bytes(1 << 60);
    let cache = ImageCache::open(directory.path().join("images"), reserve, source).unwrap();
    let error = cache.file(&file(b"image")).await.unwrap_err();
    assert!(matches!(error.kind(), ImageError::NoSpace { .. }), "{error}");
}
