//! wspool comes, goes and comes again, while apps run.

use harness::cluster::readme::Readme;
use harness::cluster::{PLAN, Scene, TIMEOUT, begin_install, install, uninstall};
use harness::wait::equal;
use harness::{Crowd, until};

const CLIENTS: usize = 60;

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn the_readmes_four_commands_lead_from_an_empty_cluster_to_the_first_moved_connections() {
    let mut scene = Scene::alone("readme", PLAN).await;
    uninstall().await;
    for left in [["crd", "websocketpools.wspool.dev"], ["namespace", "wspool"]] {
        scene.kubectl(&[["delete", "--ignore-not-found"], left].concat()).await;
    }
    let readme = Readme::read(&scene.namespace);
    let [commands @ .., scale] = readme.commands() else { panic!("no commands") };
    assert_eq!(commands.len() + 1, 4, "{:?}", readme.commands());
    for command in commands {
        readme.run(command, &scene.namespace).await;
    }
    scene.rolled_out().await;
    scene.stable(2).await;
    let before = scene.fill(CLIENTS).await;
    assert_eq!(scene.crowd.breaks(), 0);

    readme.run(scale, &scene.namespace).await;
    scene.rolled_out().await;
    scene.stable(3).await;
    let after = scene.at_home().await;
    let moved = scene.only_the_moved_were_broken(&before, &after);
    // About a third of them, at random.
    assert!(moved > 0 && moved < CLIENTS / 2, "{moved} moved");
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn uninstalled_and_installed_again_it_leaves_everyone_in_place_and_goes_on_from_there() {
    let mut scene = Scene::new("again", PLAN).await;
    let before = scene.fill(CLIENTS).await;

    uninstall().await;
    // Nobody holds a pod up. It has no sidecar, so that clients may not be led to it.
    scene.kubectl(&["scale", "deployment/chat", "--replicas=3"]).await;
    scene.rolled_out().await;
    let bare = until("the pod that came meanwhile", async || {
        let pods = scene.kubectl(&["get", "pods", "--selector=wspool.dev/pool", "--output", WITHOUT_SIDECAR]).await;
        let bare: Vec<_> = pods.lines().filter_map(|line| line.strip_suffix('=')).map(str::to_owned).collect();
        equal(&bare.len(), &1).map(|()| bare[0].clone())
    })
    .await;
    let mut newcomers = Crowd::default();
    newcomers.join_users(CLIENTS, &[scene.service().await]).await;
    for life in newcomers.lives() {
        assert_eq!((life.refusals.len(), life.breaks()), (0, 0), "{life:?}");
    }

    install().await;
    scene.degraded(&format!("{bare} is without a sidecar, and outside the pool")).await;
    scene.stable(2).await;
    let after = scene.at_home().await;
    assert_eq!(scene.only_the_moved_were_broken(&before, &after), 0, "nobody was moved");
    let (was, is) = (before.version(), after.version());
    assert!(is.term > was.term && is.epoch <= was.epoch + 1, "{was} was in force, and now {is}");

    // What the condition says is to be done.
    scene.kubectl(&["delete", "pod", &bare]).await;
    scene.rolled_out().await;
    scene.stable(3).await;
    let grown = scene.at_home().await;
    assert!(scene.only_the_moved_were_broken(&after, &grown) > 0);
    scene.all_were_told();
}

#[tokio::test]
#[ignore = "needs a cluster: make test-cluster"]
async fn a_pod_that_has_to_come_while_wspool_is_installed_comes() {
    let scene = Scene::new("meanwhile", PLAN).await;
    uninstall().await;
    let pod = scene.some_pod().await;
    begin_install().await;
    // Whoever makes the next one may have to ask again until the webhook answers.
    scene.kubectl(&["delete", "pod", &pod, TIMEOUT]).await;
    scene.rolled_out().await;
    // So that the next scene finds it.
    install().await;
}

/// Each pod, and the name of its first init container.
const WITHOUT_SIDECAR: &str = "jsonpath={range .items[*]}{.metadata.name}={.spec.initContainers[0].name}{\"\\n\"}{end}";
