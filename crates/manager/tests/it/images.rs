//! Images: announced, sent, verified.

use std::io::Cursor;

use plimsoll_api::ErrorCode;
use plimsoll_model::{Bytes, ImageFileKind, ImagePhase, Role};

use crate::cluster::{Cluster, image_request, name, refusal};

#[tokio::test]
async fn an_image_is_ready_when_its_file_is_there_and_right() {
    let cluster = Cluster::start().await;
    let (tiny, disk) = (name("tiny"), vec![1_u8; 10_000]);
    let announced = cluster.admin.create_image(None, &image_request("tiny", &disk)).await.unwrap();
    assert_eq!(announced.phase, ImagePhase::Uploading);
    let put = async |content: Vec<u8>| {
        let size = content.len() as u64;
        cluster
            .admin
            .put_image_file(None, &tiny, ImageFileKind::Disk, Cursor::new(content), size)
            .await
    };
    assert_eq!(refusal(put(vec![2; 10_000]).await).code, ErrorCode::InvalidValue);
    assert_eq!(refusal(put(vec![1; 9_999]).await).code, ErrorCode::InvalidValue);
    assert_eq!(
        cluster.admin.image(None, &tiny).await.unwrap().phase,
        ImagePhase::Uploading,
        "a wrong file changes nothing"
    );
    let ready = put(disk).await.unwrap();
    assert_eq!(ready.phase, ImagePhase::Ready);
    assert_eq!((ready.disk_format.as_str(), ready.disk_size), ("raw", Bytes(10_240)));

    let blobs = cluster.folder.path().join("data/blobs");
    let kept = |path: &std::path::Path| {
        std::fs::read_dir(path).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file())
    };
    assert_eq!(kept(&blobs).count(), 1);
    cluster.admin.delete_image(None, &tiny).await.unwrap();
    assert_eq!(kept(&blobs).count(), 0, "the file goes with its last image");
}

#[tokio::test]
async fn a_projects_image_is_its_own() {
    let cluster = Cluster::start().await;
    cluster.project("shop").await;
    cluster.project("rival").await;
    let shop = cluster.role(Role::Operator, Some("shop")).await;
    let rival = cluster.role(Role::Operator, Some("rival")).await;
    let (own, disk) = (name("shop"), vec![3_u8; 1024]);
    let secret = name("secret");
    shop.create_image(Some(&own), &image_request("secret", &disk)).await.unwrap();
    shop.put_image_file(Some(&own), &secret, ImageFileKind::Disk, Cursor::new(disk.clone()), 1024)
        .await
        .unwrap();
    assert_eq!(
        refusal(rival.image(Some(&own), &secret).await).code,
        ErrorCode::NotFound,
        "another project does not see it"
    );
    assert_eq!(
        refusal(shop.create_image(None, &image_request("public", &disk)).await).code,
        ErrorCode::Forbidden
    );
    // Who knows only the checksum announces it and has nothing.
    let theirs = name("rival");
    rival.create_image(Some(&theirs), &image_request("guess", &disk)).await.unwrap();
    let guess = rival.image(Some(&theirs), &name("guess")).await.unwrap();
    assert_eq!(guess.phase, ImagePhase::Uploading);
}
