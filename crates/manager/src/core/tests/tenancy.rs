use plimsoll_api::v1::{CreateTokenRequest, EventQuery};
use plimsoll_model::{Quota, Role, StoragePool};

use super::super::rig::{Rig, name, request, resources, spec};
use crate::app::{self, Caller};

async fn token(rig: &Rig, project: &str, role: Role) -> Caller {
    let request = CreateTokenRequest {
        role,
        project: Some(name(project)),
        note: String::new(),
        lifetime_s: None,
    };
    let made = app::token_create(&rig.core, &rig.admin, request).await.unwrap();
    app::token_authenticate(&rig.core, &made.secret).unwrap()
}

#[tokio::test]
async fn another_projects_things_are_as_if_they_were_not_there() {
    let rig = Rig::new().await;
    let _host = rig.host("h1", StoragePool::Local).await;
    rig.project("q", Quota::default()).await;
    rig.create(request("secret", None, spec(resources(100, 128)))).await.unwrap();
    let q = token(&rig, "q", Role::Admin).await;
    let (core, p, none, secret) = (&rig.core, name("p"), name("none"), name("secret"));
    let same = |a: app::AppError, b: app::AppError| {
        let (a, b) = (a.to_body(), b.to_body());
        assert_eq!(a.code, b.code);
        assert_eq!(a.message.replace("`p`", "`none`"), b.message);
        assert_eq!(a.hint, b.hint);
    };
    same(
        app::vm_show(core, &q, &p, &secret).unwrap_err(),
        app::vm_show(core, &q, &none, &secret).unwrap_err(),
    );
    same(
        app::vm_delete(core, &q, &p, &secret).await.unwrap_err(),
        app::vm_delete(core, &q, &none, &secret).await.unwrap_err(),
    );
    same(
        app::project_show(core, &q, &p).unwrap_err(),
        app::project_show(core, &q, &none).unwrap_err(),
    );
    same(
        app::project_delete(core, &q, &p).await.unwrap_err(),
        app::project_delete(core, &q, &none).await.unwrap_err(),
    );
    same(
        app::network_list(core, &q, &p).unwrap_err(),
        app::network_list(core, &q, &none).unwrap_err(),
    );
    same(
        app::image_list(core, &q, Some(&p)).unwrap_err(),
        app::image_list(core, &q, Some(&none)).unwrap_err(),
    );
    let listed = app::project_list(core, &q).unwrap();
    assert_eq!(listed.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["q"]);
    assert!(app::host_list(core, &q).is_err());
    let events = app::event_list(core, &q, EventQuery::default()).await.unwrap();
    let own = core.snapshot().project_by_name(&name("q")).unwrap().id;
    assert!(events.iter().all(|event| event.project == Some(own)));
    let status = app::cluster_status(core, &q).unwrap();
    assert!(status.vms.is_empty() && status.hosts.is_empty());
    let tokens = app::token_list(core, &q).unwrap();
    assert_eq!(tokens.len(), 1);
    let settings = plimsoll_api::v1::SetSettingsRequest::default();
    assert!(app::settings_set(core, &q, settings).await.is_err());
}

#[tokio::test]
async fn roles_bound_what_a_token_may_do() {
    let rig = Rig::new().await;
    let _host = rig.host("h1", StoragePool::Local).await;
    let (viewer, operator) =
        (token(&rig, "p", Role::Viewer).await, token(&rig, "p", Role::Operator).await);
    let core = &rig.core;
    let wanted = || request("a", None, spec(resources(100, 128)));
    let error = app::vm_create(core, &viewer, &name("p"), wanted()).await.unwrap_err();
    assert!(matches!(error, app::AppError::Forbidden { .. }));
    app::vm_create(core, &operator, &name("p"), wanted()).await.unwrap();
    assert_eq!(app::vm_list(core, &viewer, &name("p")).unwrap().len(), 1);
    assert!(app::token_list(core, &operator).is_err());
}

#[tokio::test]
async fn tokens_end_are_revoked_and_are_kept_as_hashes_only() {
    let rig = Rig::new().await;
    let core = &rig.core;
    let request = CreateTokenRequest {
        role: Role::Viewer,
        project: None,
        note: "for a test".to_owned(),
        lifetime_s: Some(60),
    };
    let made = app::token_create(core, &rig.admin, request).await.unwrap();
    assert!(app::token_authenticate(core, &made.secret).is_ok());
    use plimsoll_store::Store as _;
    let contents = rig.store.clone().load().unwrap();
    assert!(!contents.records.iter().any(|record| record.body.contains(&made.secret)));
    assert!(!contents.events.iter().any(|event| event.body.contains(&made.secret)));
    assert!(!format!("{made:?}").contains(&made.secret));
    rig.pass(std::time::Duration::from_secs(61)).await;
    assert!(app::token_authenticate(core, &made.secret).is_err());
    assert!(core.snapshot().tokens.is_empty());

    let secret = "s".repeat(40);
    app::token_ensure_admin(core, &secret, "first").await.unwrap();
    app::token_ensure_admin(core, &secret, "first").await.unwrap();
    let caller = app::token_authenticate(core, &secret).unwrap();
    assert_eq!(core.snapshot().tokens.len(), 1);
    assert!(app::token_revoke(core, &caller, caller.token).await.is_err(), "the last one");
    assert!(app::token_authenticate(core, &"x".repeat(40)).is_err());
}

#[tokio::test]
async fn a_join_token_is_good_once_and_a_failed_signature_does_not_use_it_up() {
    let rig = Rig::new().await;
    let core = &rig.core;
    let (secret, _) = app::join_token_create(core, &rig.admin, Default::default()).await.unwrap();
    let spec = super::super::rig::host_spec(StoragePool::Local);
    let refuse = |_| Err::<(), _>(app::AppError::Busy);
    app::host_join(core, &secret, name("h"), spec.clone(), refuse).await.unwrap_err();
    let (id, ()) =
        app::host_join(core, &secret, name("h"), spec.clone(), |_| Ok(())).await.unwrap();
    assert_eq!(id, plimsoll_model::HostId(1));
    let again = app::host_join(core, &secret, name("i"), spec, |_| Ok(())).await;
    assert!(matches!(again, Err(app::AppError::Unauthenticated)));
    rig.check_consistent().await;
}
