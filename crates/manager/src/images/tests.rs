use futures_util::stream;

use super::*;

fn file(kind: ImageFileKind, content: &[u8]) -> ImageFile {
    let sha256 = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    ImageFile { kind, sha256, size: plimsoll_model::Bytes(content.len() as u64) }
}

fn chunks(content: &[u8]) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
    let parts: Vec<_> = content.chunks(7).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    stream::iter(parts)
}

fn leftovers(data: &Path) -> usize {
    fs_err::read_dir(data.join("blobs/incoming")).unwrap().count()
}

#[tokio::test]
async fn a_file_is_taken_whole_and_given_back() {
    let data = tempfile::tempdir().unwrap();
    let store = BlobStore::open(data.path()).unwrap();
    let content = b"vmlinuz, or so it says";
    let announced = file(ImageFileKind::Kernel, content);
    assert_eq!(store.receive(&announced, chunks(content)).await.unwrap(), None);
    let (_, length) = store.read(&announced.sha256).await.unwrap();
    assert_eq!(length, content.len() as u64);
    store.remove(&announced.sha256).await.unwrap();
    store.remove(&announced.sha256).await.unwrap();
    assert!(matches!(store.read(&announced.sha256).await, Err(BlobError::Missing { .. })));
    assert!(store.read("../../etc/passwd").await.is_err());
}

#[tokio::test]
async fn what_was_not_announced_is_refused_and_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    let store = BlobStore::open(data.path()).unwrap();
    let announced = file(ImageFileKind::Kernel, b"announced");
    for (content, what) in
        [(&b"announced and more"[..], "Size"), (b"short", "Size"), (b"ANNOUNCED", "Checksum")]
    {
        let error = store.receive(&announced, chunks(content)).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(what), "{error:?}");
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err(io::Error::other("gone"))]);
    assert!(matches!(store.receive(&announced, broken).await, Err(BlobError::Broken { .. })));
    assert_eq!(leftovers(data.path()), 0);
    assert!(store.read(&announced.sha256).await.is_err());
}

#[tokio::test]
async fn an_upload_that_a_crash_cut_off_is_thrown_away() {
    let data = tempfile::tempdir().unwrap();
    BlobStore::open(data.path()).unwrap();
    fs_err::write(data.path().join("blobs/incoming/half"), "x").unwrap();
    BlobStore::open(data.path()).unwrap();
    assert_eq!(leftovers(data.path()), 0);
}

/// With the real `qemu-img`, where there is one.
#[tokio::test]
async fn a_disk_with_a_backing_file_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let store = BlobStore::open(data.path()).unwrap();
    let create = |args: &[&str]| {
        std::process::Command::new("qemu-img")
            .arg("create")
            .args(args)
            .current_dir(data.path())
            .output()
    };
    let Ok(made) = create(&["-f", "qcow2", "plain.qcow2", "64M"]) else {
        eprintln!("SKIPPED: qemu-img is not installed");
        return;
    };
    assert!(made.status.success());
    create(&["-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "evil.qcow2", "64M"]).unwrap();
    let plain = fs_err::read(data.path().join("plain.qcow2")).unwrap();
    let facts = store.receive(&file(ImageFileKind::Disk, &plain), chunks(&plain)).await.unwrap();
    let expected = DiskFacts { format: "qcow2", virtual_size: plimsoll_model::Bytes::mib(64) };
    assert_eq!(facts, Some(expected));
    let evil = fs_err::read(data.path().join("evil.qcow2")).unwrap();
    let error = store.receive(&file(ImageFileKind::Disk, &evil), chunks(&evil)).await.unwrap_err();
    assert!(matches!(error, BlobError::Disk(InspectError::RefersElsewhere { .. })), "{error:?}");
    // A header that is fine, and rubbish behind it.
    let mut cut = plain.clone();
    cut.truncate(600);
    let error = store.receive(&file(ImageFileKind::Disk, &cut), chunks(&cut)).await;
    assert!(error.is_err() || error.is_ok_and(|facts| facts == Some(expected_facts())));
    assert_eq!(leftovers(data.path()), 0);
}

fn expected_facts() -> DiskFacts {
    DiskFacts { format: "qcow2", virtual_size: plimsoll_model::Bytes::mib(64) }
}
