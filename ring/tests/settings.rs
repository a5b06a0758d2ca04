//! Settings: their defaults, their spelling, and what a mistake is told.

use ring::SlotId;
use ring::duration::GoDuration;
use ring::settings::{Gateway, KeySource, Missing, NoticeProtocol, OwnerUnreachable, Settings, Trust, Unit};
use serde_json::{Value, json};

fn read(settings: Value) -> Result<Settings, String> {
    serde_json::from_value(settings).map_err(|error| error.to_string())
}

#[test]
fn settings_that_say_nothing_are_the_documented_defaults() {
    let settings = read(json!({})).expect("it reads");
    assert_eq!(settings.key.from, []);
    assert_eq!((settings.key.missing, settings.key.trust), (Missing::Spread, Trust::Routing));
    assert_eq!((settings.unit, settings.owner_unreachable), (Unit::Key, OwnerUnreachable::Fallback));
    let notice = &settings.notice;
    assert_eq!((notice.protocol, notice.close_code, notice.app_close_code), (NoticeProtocol::WebSocket, None, 1001));
    assert_eq!(notice.code(), 1012);
    assert_eq!((&notice.message, notice.reason.as_str()), (&None, "moved"));
    assert_eq!(settings.drain.timeout, GoDuration::from_secs(60));
    let limits = settings.limits;
    assert_eq!((limits.connections, limits.handshakes_per_second, limits.per_key), (50_000, 500, 0));
    assert_eq!(limits.idle, GoDuration::from_secs(0));
}

#[test]
fn settings_read_and_write_as_a_pool_spells_them() {
    let written = json!({
        "key": {
            "from": [{"query": "user"}, {"header": "x-user"}, {"cookie": "sid"}, {"path": "/rooms/{key}"}],
            "missing": "Reject",
            "trust": "Routing",
        },
        "strategy": "LeastConnections",
        "unit": "Connection",
        "ownerUnreachable": "Reject",
        "notice": {
            "protocol": "WebSocket",
            "closeCode": 4000,
            "appCloseCode": 1000,
            "message": "{\"type\":\"reconnect\"}",
            "reason": "",
        },
        "drain": {"timeout": "90s"},
        "limits": {"connections": 1, "handshakesPerSecond": 2, "perKey": 3, "idle": "1h"},
        "rate": 20,
    });
    let settings = read(written.clone()).expect("it reads");
    assert_eq!(settings.key.from[3], KeySource::Path("/rooms/{key}".into()));
    assert_eq!(serde_json::to_value(&settings).expect("it writes"), written);
}

#[test]
fn an_unknown_field_is_named_with_the_fields_that_exist() {
    for (settings, unknown, known) in [
        (json!({"limit": {}}), "limit", "limits"),
        (json!({"key": {"form": []}}), "form", "from"),
        (json!({"key": {"from": [{"querry": "user"}]}}), "querry", "query"),
        (json!({"notice": {"close_code": 1012}}), "close_code", "closeCode"),
        (json!({"drain": {"timeOut": "5s"}}), "timeOut", "timeout"),
        (json!({"limits": {"perkey": 1}}), "perkey", "perKey"),
    ] {
        let error = read(settings).expect_err(unknown);
        assert!(error.contains(&format!("`{unknown}`")) && error.contains(&format!("`{known}`")), "{error}");
    }
}

#[test]
fn a_wrong_value_is_named_with_what_would_be_right() {
    for (settings, right) in [
        (json!({"unit": "key"}), "`Key`"),
        (json!({"key": {"missing": "Refuse"}}), "`Reject`"),
        (json!({"drain": {"timeout": "60"}}), "1m30s"),
        (json!({"limits": {"connections": -1}}), "u32"),
    ] {
        let error = read(settings).expect_err(right);
        assert!(error.contains(right), "{error}");
    }
}

#[test]
fn tokens_have_defaults_and_a_pool_without_them_does_not_name_them() {
    let settings = read(json!({"key": {"from": [{"jwt": "sub"}], "jwt": {"issuer": "a", "jwksUri": "https://a"}}}));
    let settings = settings.expect("it reads");
    let jwt = settings.key.jwt.as_ref().expect("it");
    assert_eq!(jwt.faults(), []);
    let written = serde_json::to_value(jwt).expect("JSON");
    assert_eq!(
        written,
        json!({
            "issuer": "a", "algorithms": ["RS256", "ES256", "EdDSA"], "leeway": "30s", "jwksUri": "https://a",
            "token": [{"header": "Authorization"}, {"query": "access_token"}],
        })
    );
    let without = serde_json::to_value(Settings::default()).expect("JSON");
    assert_eq!(without["key"].get("jwt"), None, "an older sidecar reads a pool that does not use it");
}

#[test]
fn an_address_of_keys_is_one_where_nobody_on_the_way_can_change_them() {
    let faults = |uri: &str| {
        let settings = read(json!({"key": {"jwt": {"issuer": "a", "jwksUri": uri}}})).expect("it reads");
        settings.key.jwt.expect("it").faults()
    };
    for good in ["https://a", "https://a:8443/b?c=d", "http://127.0.0.1:80/", "http://localhost", "http://[::1]:1/a"] {
        assert_eq!(faults(good), [], "{good}");
    }
    for bad in [
        "",
        "a",
        "ftp://a",
        "https://",
        "https:///a",
        "https://a@b/",
        "https://a b/",
        "http://a",
        "http://127.0.0.1.a/",
        "http://127.0.0.1@a/",
        "http://10.0.0.1/",
        "http://localhost.a:80",
        "HTTP://127.0.0.1",
    ] {
        let faults = faults(bad);
        assert_eq!(faults.iter().map(|fault| fault.field.as_str()).collect::<Vec<_>>(), [".jwksUri"], "{bad}");
    }
}

#[test]
fn an_address_is_a_slots_when_its_host_and_path_are() {
    let gateway = |url: &str| Gateway {
        path: Gateway::default_path(),
        url: url.into(),
        origins: Vec::new(),
        per_client: 0,
        trusted_hops: 0,
    };
    let by_host = gateway("wss://s{slot}.chat.example.com/");
    let by_path = gateway("wss://chat.example.com/s{slot}/");
    let open_end = gateway("wss://chat.example.com/s{slot}");
    let by_query = gateway("wss://chat.example.com/?s={slot}");
    let by_port = gateway("ws://127.0.0.1:800{slot}");
    let own_port = gateway("wss://s{slot}.chat.example.com:443/");
    for (gateway, host, target, slot) in [
        (&by_host, "s1.chat.example.com", "/?user=ann", 1),
        (&by_host, "S1.Chat.Example.com", "/rooms/7", 1),
        (&by_path, "chat.example.com", "/s1/ws", 1),
        (&open_end, "chat.example.com", "/s1", 1),
        (&open_end, "chat.example.com", "/s1/ws", 1),
        (&open_end, "chat.example.com", "/s1?user=ann", 1),
        (&by_query, "chat.example.com", "/?s=1&user=ann", 1),
        (&by_port, "127.0.0.1:8001", "/", 1),
        (&own_port, "s1.chat.example.com", "/", 1),
        (&by_host, "s1.chat.example.com:443", "/", 1),
    ] {
        assert!(gateway.is_address_of(SlotId(slot), host, target), "{host}{target}");
        assert!(!gateway.is_address_of(SlotId(slot + 10), host, target), "{host}{target}");
    }
    assert!(!by_host.is_address_of(SlotId(1), "chat.example.com", "/"));
    assert!(!by_path.is_address_of(SlotId(1), "chat.example.com", "/s12/"));
    assert!(!open_end.is_address_of(SlotId(1), "chat.example.com", "/s10"), "another slot's");
    assert!(!by_query.is_address_of(SlotId(1), "chat.example.com", "/?s=10"), "another slot's");
    assert!(!by_host.is_address_of(SlotId(1), "s1.chat.example.com:80", "/"), "the port of another scheme");
}
