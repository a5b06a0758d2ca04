//! Manifests in, manifests with the sidecar out: through the command, as a user runs it.

use clap::Parser;
use operator::inject::command::{InjectArgs, run};
use serde_json::{Value, json};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: InjectArgs,
}

fn indented(by: usize, text: &str) -> String {
    let indent = " ".repeat(by);
    text.lines().flat_map(|line| [&indent, line, "\n"]).collect()
}

/// A Deployment whose pod template is `template`, under a pool that says port 3000 and a drain of 45 s.
fn deployment(template: &str) -> String {
    let indented = indented(4, template);
    format!(
        "apiVersion: wspool.dev/v1alpha1\n\
         kind: WebSocketPool\n\
         metadata: {{name: chat}}\n\
         spec: {{port: 3000, drain: {{timeout: 45s}}}}\n\
         ---\n\
         apiVersion: apps/v1\n\
         kind: Deployment\n\
         metadata: {{name: chat}}\n\
         spec:\n  template:\n{indented}"
    )
}

/// A template with the label, and this spec.
fn template(spec: &str) -> String {
    let indented = indented(2, spec);
    deployment(&format!("metadata: {{labels: {{wspool.dev/pool: chat}}}}\nspec:\n{indented}"))
}

/// What the command writes, and what it says beside.
fn run_on(manifest: &str, flags: &[&str]) -> Result<(String, String), String> {
    let arguments = ["inject", "-f", "-", "--sidecar-image", "wspool-sidecar:test"];
    let command = Command::try_parse_from(arguments.iter().chain(flags)).expect("the flags are right");
    let (mut out, mut log) = (Vec::new(), Vec::new());
    run(&command.args, manifest.as_bytes(), &mut out, &mut log).map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    Ok((text(out), text(log)))
}

fn injected(manifest: &str) -> String {
    run_on(manifest, &[]).expect("it can be injected").0
}

fn refusal(manifest: &str) -> String {
    run_on(manifest, &[]).expect_err("it is refused")
}

/// The pod's spec in the last document.
fn pod_spec(manifest: &str) -> Value {
    let last = manifest.rsplit("---\n").next().unwrap_or_default();
    let object: Value = serde_yaml::from_str(last).expect("it writes YAML");
    object.pointer("/spec/template/spec").or(object.get("spec")).expect("it has a pod").clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

fn prestop(container: &Value) -> Value {
    container["lifecycle"]["preStop"]["exec"]["command"].clone()
}

const PLAIN: &str = "\
# The chat server.
apiVersion: v1
kind: Service
metadata: {name: chat}   # stays as it is
spec: {selector: {app: chat}, ports: [{port: 80, targetPort: 7480}]}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat
spec:
  replicas: 3
  someFieldOfTheFuture: {kept: true}
  selector: {matchLabels: {app: chat}}
  template:
    metadata:
      labels: {app: chat, wspool.dev/pool: chat}
    spec:
      containers:
      - name: app
        image: chat:1
        ports:
        - {name: ws, containerPort: 3000}
        readinessProbe:
          tcpSocket: {port: ws}
";

#[test]
fn a_plain_deployment_gets_the_sidecar() {
    insta::assert_snapshot!(injected(PLAIN));
}

#[test]
fn what_was_done_is_said_beside_the_manifest() {
    let (_, log) = run_on(PLAIN, &[]).expect("it can be injected");
    assert_eq!(log, "Deployment chat: injected for the pool chat; the app is container app, port 3000\n");
}

#[test]
fn documents_without_the_label_pass_byte_for_byte() {
    let manifest = "# a comment\n---\n# another\na: 'x'   # here\n---\n{b: [1,2]}\n--- # last\nkind: Deployment\nspec: {template: {metadata: {labels: {app: x}}, spec: {containers: 1}}}\n";
    let (out, log) = run_on(manifest, &[]).expect("there is nothing to refuse");
    assert_eq!(out, manifest);
    assert!(log.contains("nothing to inject"), "{log}");
}

#[test]
fn injecting_twice_changes_nothing() {
    let once = injected(PLAIN);
    assert_eq!(injected(&once), once);
}

#[test]
fn a_container_added_since_by_another_injector_changes_nothing() {
    let once = injected(PLAIN);
    let more = once.replace("      containers:\n", "      containers:\n      - {name: mesh, image: mesh:1}\n");
    assert_ne!(more, once);
    assert_eq!(injected(&more), more);
}

#[test]
fn every_kind_with_a_pod_template_is_injected() {
    let pod = "{metadata: {labels: {wspool.dev/pool: chat}}, spec: {containers: [{name: app, image: a, ports: [{containerPort: 1}]}]}}";
    for manifest in [
        format!("{{kind: StatefulSet, metadata: {{name: x}}, spec: {{serviceName: x, template: {pod}}}}}"),
        format!("{{kind: DaemonSet, metadata: {{name: x}}, spec: {{template: {pod}}}}}"),
        format!("{{kind: Rollout, metadata: {{name: x}}, spec: {{strategy: {{}}, template: {pod}}}}}"),
        format!("{{kind: CronJob, metadata: {{name: x}}, spec: {{jobTemplate: {{spec: {{template: {pod}}}}}}}}}"),
        format!("{{kind: List, items: [{{kind: ReplicaSet, metadata: {{name: x}}, spec: {{template: {pod}}}}}]}}"),
        format!("{{\"kind\": \"Pod\", \"metadata\": {{\"generateName\": \"x-\", {}", &pod["{metadata: {".len()..]),
    ] {
        let (out, log) = run_on(&manifest, &[]).expect("it can be injected");
        assert!(out.contains("wspool-sidecar:test"), "{out}");
        assert!(log.contains("the app is container app, port 1"), "{log}");
    }
}

#[test]
fn the_hook_before_runs_after_the_drain() {
    let drain = ["/wspool/bin/wspool-sidecar", "prestop", "--timeout=45s"];
    let ports = "ports: [{name: admin, containerPort: 9000}]";
    for (hook, then) in [
        ("exec: {command: [sh, -c, 'kill -TERM 1']}", &["--", "sh", "-c", "kill -TERM 1"][..]),
        ("sleep: {seconds: 5}", &["--sleep=5s"]),
        ("httpGet: {path: /stop?now=1, port: 8080}", &["--http-get=/stop?now=1", "--port=8080"]),
        ("httpGet: {port: admin}", &["--http-get=/", "--port=9000"]),
        (
            "httpGet: {path: /stop, port: '8080', host: other, httpHeaders: [{name: a, value: 'b: c'}]}",
            &["--http-get=/stop", "--port=8080", "--host=other", "--header=a: b: c"],
        ),
        ("tcpSocket: {port: 8080}", &[]),
    ] {
        let spec =
            format!("containers:\n- {{name: app, {ports}, lifecycle: {{stopSignal: SIGINT, preStop: {{{hook}}}}}}}");
        let spec = pod_spec(&injected(&template(&spec)));
        let app = &spec["containers"][0];
        assert_eq!(prestop(app), json!([&drain, then].concat()), "{hook}");
        assert_eq!(app["lifecycle"]["stopSignal"], "SIGINT", "{hook}");
    }
}

#[test]
fn a_hook_by_http_is_told_the_pods_address_only_if_it_names_no_host() {
    let spec = |hook: &str| {
        let spec =
            format!("containers:\n- {{name: app, env: [{{name: A, value: b}}], lifecycle: {{preStop: {{{hook}}}}}}}");
        pod_spec(&injected(&template(&spec)))
    };
    let told = spec("httpGet: {port: 8080}");
    let variable = json!({"name": "WSPOOL_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}});
    let env = told["containers"][0]["env"].as_array().expect("variables");
    assert_eq!((&env[0], env.last()), (&json!({"name": "A", "value": "b"}), Some(&variable)));
    for hook in ["httpGet: {port: 8080, host: other}", "sleep: {seconds: 1}"] {
        assert!(!names(&spec(hook)["containers"][0]["env"]).contains(&"WSPOOL_POD_IP"), "{hook}");
    }
}

#[test]
fn the_app_is_told_where_the_local_api_is_unless_it_says_otherwise() {
    let out = injected(&template("containers: [{name: app, env: [{name: WSPOOL_API_URL, value: 'http://own'}]}]"));
    let env = pod_spec(&out)["containers"][0]["env"].clone();
    let token = json!({"name": "WSPOOL_API_TOKEN_FILE", "value": "/wspool/bin/api-token"});
    assert_eq!(env, json!([{"name": "WSPOOL_API_URL", "value": "http://own"}, token]));
}

#[test]
fn the_secret_of_redis_is_the_one_that_the_pool_names() {
    let secret = |manifest: &str| {
        let spec = pod_spec(&injected(manifest));
        let mut volumes = spec["volumes"].as_array().expect("volumes").iter();
        let volume = volumes.find(|volume| volume["name"] == "wspool-redis").expect("a volume");
        assert_eq!(volume["secret"]["optional"], true);
        volume["secret"]["secretName"].clone()
    };
    let manifest = template("containers: [{name: app}]");
    assert_eq!(secret(&manifest), "chat-redis");
    let named = "spec: {redis: {urlFrom: {secretKeyRef: {name: shared, key: url}}}, port";
    assert_eq!(secret(&manifest.replacen("spec: {port", named, 1)), "shared");
}

#[test]
fn the_app_keeps_the_time_it_had_to_end() {
    for (before, after) in
        [("", 75), ("terminationGracePeriodSeconds: 10\n", 55), ("terminationGracePeriodSeconds: 0\n", 45)]
    {
        let spec = pod_spec(&injected(&template(&format!("{before}containers: [{{name: app}}]"))));
        assert_eq!(spec["terminationGracePeriodSeconds"], after, "{before}");
    }
}

#[test]
fn the_app_is_the_container_that_is_named_or_listens_or_is_the_default_or_the_first() {
    let pod = |annotations: &str, containers: &str| {
        let labels = "labels: {wspool.dev/pool: chat}";
        let template =
            format!("metadata: {{{labels}, annotations: {{{annotations}}}}}\nspec: {{containers: [{containers}]}}");
        let spec = pod_spec(&injected(&deployment(&template)));
        let containers = spec["containers"].as_array().cloned().unwrap_or_default();
        let held = containers.iter().filter(|container| !prestop(container).is_null());
        let held: Vec<String> =
            held.map(|container| container["name"].as_str().unwrap_or_default().to_owned()).collect();
        held.join(",")
    };
    let three = "{name: a}, {name: b, ports: [{containerPort: 3000}]}, {name: c}";
    let silent = "{name: a}, {name: b}";
    assert_eq!(pod("", three), "b");
    assert_eq!(pod("wspool.dev/container: c", three), "c");
    assert_eq!(pod("wspool.dev/container: 'c, a'", three), "a,c");
    assert_eq!(pod("kubectl.kubernetes.io/default-container: c", three), "b");
    assert_eq!(pod("kubectl.kubernetes.io/default-container: b", silent), "b");
    assert_eq!(pod("kubectl.kubernetes.io/default-container: gone", silent), "a");
    assert_eq!(pod("", silent), "a");
    assert_eq!(
        pod("", "{name: a, ports: [{containerPort: 3000, protocol: UDP}]}, {name: b, ports: [{containerPort: 3000}]}"),
        "b"
    );
}

#[test]
fn other_containers_and_init_containers_stay_as_they_are_and_before_the_sidecar() {
    let spec = "
initContainers:
- {name: mesh-init, image: mesh:1}
- {name: mesh-proxy, image: mesh:1, restartPolicy: Always, ports: [{name: mesh, containerPort: 15090}]}
containers:
- {name: app, ports: [{name: ws, containerPort: 3000}], livenessProbe: {httpGet: {port: ws}}, volumeMounts: [{name: data, mountPath: /data}]}
- {name: logs, image: logs:1, lifecycle: {preStop: {sleep: {seconds: 3}}}}
volumes:
- {name: data, emptyDir: {}}";
    let before = pod_spec(&template(spec));
    let after = pod_spec(&injected(&template(spec)));
    assert_eq!(names(&after["initContainers"]), ["mesh-init", "mesh-proxy", "wspool-sidecar"]);
    assert_eq!(
        names(&after["volumes"]),
        ["data", "wspool-bin", "wspool-state", "wspool-placement", "wspool-peers", "wspool-jwks", "wspool-redis"]
    );
    assert_eq!(after["initContainers"][1], before["initContainers"][1]);
    assert_eq!(after["containers"][1], before["containers"][1]);
    let app = &after["containers"][0];
    assert_eq!(names(&app["volumeMounts"]), ["data", "wspool-bin"]);
    for field in ["ports", "livenessProbe"] {
        assert_eq!(app[field], before["containers"][0][field]);
    }
}

fn sidecar(spec: &str, flags: &[&str]) -> Value {
    let (out, _) = run_on(&template(spec), flags).expect("it can be injected");
    let spec = pod_spec(&out);
    spec["initContainers"].as_array().and_then(|list| list.last()).cloned().expect("it has init containers")
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let limits = "limits: {cpu: 1, memory: 1Gi}";
    let guaranteed = format!(
        "initContainers: [{{name: i, resources: {{{limits}}}}}]\n\
         containers: [{{name: app, resources: {{{limits}, requests: {{cpu: 1000m, memory: 1024Mi}}}}}}]"
    );
    let resources = &sidecar(&guaranteed, &[])["resources"];
    assert_eq!(
        *resources,
        json!({"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "500m", "memory": "256Mi"}})
    );
    let resources = &sidecar(&guaranteed, &["--sidecar-cpu=2", "--sidecar-memory=300M"])["resources"];
    assert_eq!(
        *resources,
        json!({"limits": {"cpu": "2", "memory": "300M"}, "requests": {"cpu": "2", "memory": "300M"}})
    );
}

#[test]
fn a_sidecar_of_any_other_pod_has_requests_and_no_limits() {
    for containers in [
        "{name: app}",
        "{name: app, resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Mi}}}",
        "{name: app, resources: {limits: {cpu: 1}}}",
        "{name: app, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: other}",
    ] {
        let resources = &sidecar(&format!("containers: [{containers}]"), &[])["resources"];
        assert_eq!(*resources, json!({"requests": {"cpu": "100m", "memory": "128Mi"}}), "{containers}");
    }
}

#[test]
fn a_pod_says_what_its_sidecar_requests() {
    let annotations = "annotations: {wspool.dev/sidecar-cpu: 250m, wspool.dev/sidecar-memory: 64Mi}";
    let template = format!(
        "metadata: {{labels: {{wspool.dev/pool: chat}}, {annotations}}}\nspec: {{containers: [{{name: app}}]}}"
    );
    let spec = pod_spec(&injected(&deployment(&template)));
    assert_eq!(spec["initContainers"][0]["resources"], json!({"requests": {"cpu": "250m", "memory": "64Mi"}}));
}

#[test]
fn a_sidecar_takes_its_share_of_resources_that_the_pod_has_as_a_whole() {
    let resources = &sidecar("resources: {limits: {cpu: 2}}\ncontainers: [{name: app}]", &[])["resources"];
    assert_eq!(*resources, Value::Null);
}

#[test]
fn a_sidecar_names_a_user_only_where_the_pod_runs_as_root() {
    let user = |context: &str| {
        let sidecar = sidecar(&format!("securityContext: {{{context}}}\ncontainers: [{{name: app}}]"), &[]);
        sidecar["securityContext"]["runAsUser"].clone()
    };
    assert_eq!(user("runAsUser: 0"), 65_532);
    assert_eq!(user("runAsUser: 1000"), Value::Null);
    assert_eq!(user(""), Value::Null);
}

#[test]
fn without_a_pool_the_port_is_the_annotations_or_the_only_one() {
    let pod = |annotations: &str, ports: &str| {
        format!(
            "{{kind: Pod, metadata: {{name: x, labels: {{wspool.dev/pool: chat}}, annotations: {{{annotations}}}}}, \
             spec: {{containers: [{{name: app, ports: [{ports}]}}]}}}}"
        )
    };
    let upstream = |manifest: &str| {
        let spec = pod_spec(&injected(manifest));
        let env = spec["initContainers"][0]["env"].as_array().cloned().unwrap_or_default();
        env.into_iter().find(|v| v["name"] == "WSPOOL_UPSTREAM").map(|v| v["value"].clone())
    };
    assert_eq!(upstream(&pod("", "{containerPort: 80}")), Some(json!("$(POD_IP):80")));
    assert_eq!(
        upstream(&pod("", "{containerPort: 80}, {containerPort: 53, protocol: UDP}")),
        Some(json!("$(POD_IP):80"))
    );
    assert_eq!(upstream(&pod("wspool.dev/port: '81'", "{containerPort: 80}")), Some(json!("$(POD_IP):81")));
    assert_eq!(pod_spec(&injected(&pod("", "{containerPort: 80}")))["terminationGracePeriodSeconds"], 90);
    let refused = refusal(&pod("", "{containerPort: 80}, {containerPort: 81}"));
    assert!(
        refused.contains("declares 2 TCP ports; create the pool first, or set the annotation wspool.dev/port"),
        "{refused}"
    );
}

#[test]
fn a_pool_of_another_namespace_says_nothing() {
    let manifest = template("containers: [{name: app, ports: [{containerPort: 80}]}]")
        .replace("metadata: {name: chat}\nspec: {port", "metadata: {name: chat, namespace: a}\nspec: {port");
    let port = |manifest: &str| run_on(manifest, &[]).expect("it can be injected").1;
    assert!(port(&manifest).contains("port 3000"));
    let elsewhere =
        manifest.replace("metadata: {name: chat}\nspec:\n", "metadata: {name: chat, namespace: b}\nspec:\n");
    assert_ne!(elsewhere, manifest);
    assert!(port(&elsewhere).contains("port 80"));
}

#[test]
fn what_cannot_be_injected_is_refused_with_a_sentence() {
    let labelled =
        |metadata: &str| deployment(&format!("metadata: {{{metadata}}}\nspec: {{containers: [{{name: app}}]}}"));
    for (manifest, sentence) in [
        (template("hostNetwork: true\ncontainers: [{name: app}]"), "remove hostNetwork, or the label"),
        (template("os: {name: windows}\ncontainers: [{name: app}]"), "the sidecar runs on Linux"),
        (template("containers: []"), "the pod has no containers"),
        (
            template("containers: [{name: app, ports: [{containerPort: 7481}]}]"),
            "\"app\" uses port 7481; the sidecar needs 7480 to 7483",
        ),
        (
            template("containers: [{name: app, lifecycle: {preStop: {httpGet: {port: 1, scheme: HTTPS}}}}]"),
            "httpGet over HTTPS",
        ),
        (
            template("containers: [{name: app, lifecycle: {preStop: {httpGet: {port: gone}}}}]"),
            "names the port \"gone\"",
        ),
        (template("containers: [{name: app, ports: [1]}]"), "document 2: Deployment chat: invalid type"),
        (labelled("labels: {wspool.dev/pool: ''}"), "the label wspool.dev/pool is empty"),
        (labelled("labels: {wspool.dev/pool: Chat_1}"), "\"Chat_1\", which cannot be a pool's name"),
        (
            labelled("labels: {wspool.dev/pool: chat}, annotations: {wspool.dev/container: web}"),
            "names \"web\"; the pod has \"app\"",
        ),
        (
            labelled("labels: {wspool.dev/pool: chat}, annotations: {wspool.dev/sidecar-cpu: much}"),
            "is \"much\"; write a Kubernetes quantity",
        ),
        (
            labelled("labels: {wspool.dev/pool: x}, annotations: {wspool.dev/port: '0'}"),
            "is \"0\"; write a port, 1 to 65535",
        ),
        (
            injected(PLAIN).replace("wspool.dev/pool: chat", "wspool.dev/pool: other"),
            "has the sidecar of the pool \"chat\"",
        ),
    ] {
        let refused = refusal(&manifest);
        assert!(refused.contains(sentence), "{refused}");
    }
}

#[test]
fn every_fault_is_named_with_its_place_and_nothing_is_written() {
    let twice = format!(
        "{}---\n{}",
        template("hostNetwork: true"),
        template("containers: []").replacen("chat}\nspec: {port", "other}\nspec: {port", 1)
    );
    let refused = refusal(&twice);
    let lines: Vec<&str> = refused.lines().collect();
    assert_eq!(lines.len(), 2, "{refused}");
    assert!(lines[0].starts_with("-, document 2: Deployment chat: "), "{refused}");
    assert!(lines[1].starts_with("-, document 4: Deployment chat: "), "{refused}");
    let syntax = refusal("a: 1\n---\nb: [\n");
    assert!(syntax.starts_with("-, document 2: "), "{syntax}");
}

#[test]
fn what_a_user_wrote_stays_as_it_was_written() {
    let spec = "\
# One server.
containers:
- name: 'app'   # the app
  env:
  - {name: A, value: 'yes'}
  - {name: B, value: \"0644\"}
  args:
  - |
    several
    lines
# Not the app's.
volumes:
- name: config
  configMap: {name: chat, defaultMode: 0644}
terminationGracePeriodSeconds: 30   # as by default
";
    let (before, after) = (template(spec), injected(&template(spec)));
    let mut lines = after.lines();
    for line in before.lines().filter(|line| !line.contains("terminationGracePeriodSeconds")) {
        assert!(lines.any(|kept| kept == line), "{line}\n{after}");
    }
    assert!(after.contains("terminationGracePeriodSeconds: 75   # as by default\n"), "{after}");
}

#[test]
fn words_that_some_parsers_take_for_something_else_are_quoted() {
    for word in
        ["yes", "on", "n", "0755", "1_000", "12:30:45", "2026-01-01", "null", "-", "<<", "a: b", " a", "a:", "#", ""]
    {
        let hook = format!("exec: {{command: [{}]}}", json!(word));
        let out = injected(&template(&format!("containers:\n- name: app\n  lifecycle:\n    preStop: {{{hook}}}")));
        assert!(out.contains(&format!("- {}\n", json!(word))), "{word}\n{out}");
    }
}
