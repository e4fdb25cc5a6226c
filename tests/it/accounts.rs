//! Accounts, contacts and their usage reach Variance whole, in every shape in which PostHog sends them.

use serde_json::{Value, json};
use variance_connector::variance::Call;

use crate::{
    harness::{Reply, Service},
    program::Program,
    variance::Variance,
};

/// Returns an event in a webhook destination's body with `beside` next to it, as a bare event, in an array and in a
/// batch. Each has an id of its own.
fn shapes(event: &Value, beside: &Value) -> [(&'static str, String); 4] {
    let with_id = |last: u8| {
        let mut event = event.clone();
        if event.get("timestamp").is_none() {
            event["timestamp"] = "2026-08-20T09:14:03Z".into();
        }
        event["uuid"] = format!("0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b1{last}").into();
        event
    };
    let inside = |last: u8| {
        let mut event = with_id(last);
        event.as_object_mut().unwrap().extend(beside.as_object().unwrap().clone());
        event
    };
    let mut webhook = beside.clone();
    webhook["event"] = with_id(3);
    [
        ("/webhook", webhook.to_string()),
        ("/webhook", inside(0).to_string()),
        ("/batch", json!([inside(1)]).to_string()),
        ("/batch", json!({"batch": [inside(2)], "api_key": "k"}).to_string()),
    ]
}

/// Returns what arrives at Variance for an event in each shape, and checks that `preview` shows the same.
async fn arrived(calls: &str, event: &Value, beside: &Value) -> Vec<Value> {
    let variance = Variance::start().await;
    let calls_of = calls.split(',').map(|call| call.parse::<Call>().unwrap()).collect();
    let service = Service::start(&variance, |settings| settings.mapping.calls = calls_of).await;
    for (path, body) in shapes(event, beside) {
        let reply = service.post(path, body.clone()).await;
        assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{body}");
        let preview = Program::new(["preview", "--quiet"]).env("CONNECTOR_CALLS", calls).input(body).run().await;
        let shown: Value = serde_json::from_str(&preview.out).unwrap_or_else(|error| panic!("{error}: {preview:?}"));
        assert_eq!(Some(&shown), variance.bodies().last());
    }
    variance.bodies()
}

fn told(reply: &Reply) -> (u16, [u64; 6], Vec<String>) {
    (reply.status, reply.counts(), reply.reasons())
}

#[tokio::test]
async fn rows_that_share_what_should_be_an_id_are_each_delivered_once() {
    let row = |plan: &str| {
        json!({
            "uuid": "data-warehouse-table-uuid-do-not-use",
            "event": "data-warehouse-table-event-do-not-use",
            "distinct_id": "data-warehouse-table-distinct-id-do-not-use",
            "properties": {"plan": plan},
        })
    };
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    for _ in 0..2 {
        let batch = json!({"batch": [row("team"), row("free"), row("team")]});
        assert_eq!(service.post("/batch", batch.to_string()).await.counts(), [3, 3, 0, 0, 0, 0]);
        for plan in ["team", "free"] {
            let body = json!({"event": row(plan), "person": null});
            assert_eq!(service.post("/webhook", body.to_string()).await.counts(), [1, 1, 0, 0, 0, 0]);
        }
    }
    let bodies = variance.bodies();
    let mut plans: Vec<_> = bodies.iter().map(|body| body["properties"]["plan"].as_str().unwrap()).collect();
    plans.sort_unstable();
    assert_eq!(plans, ["free", "team"]);
    assert!(bodies.iter().all(|body| body["messageId"] == "data-warehouse-table-uuid-do-not-use"));
}

#[tokio::test]
async fn identify_without_a_set_has_the_persons_properties_as_traits() {
    let person = json!({"email": "ada@example.com", "plan": "team", "$browser": "Chrome", "gone": null});
    let traits = json!({"email": "ada@example.com", "plan": "team"});
    for name in ["$identify", "$set"] {
        let event = json!({"event": name, "distinct_id": "user_1", "properties": {"$lib": "web"}});
        for beside in [
            json!({"person": {"id": "0198", "properties": person}}),
            json!({"person": {"properties": person.to_string()}}),
        ] {
            let bodies = arrived("identify", &event, &beside).await;
            assert!(bodies.iter().all(|body| body["traits"] == traits), "{bodies:?}");
        }
        for beside in
            [json!({"person": {"id": "0198"}}), json!({"person": {"properties": ["a"]}}), json!({"person": null})]
        {
            let bodies = arrived("identify", &event, &beside).await;
            assert!(bodies.iter().all(|body| body.get("traits").is_none()), "{bodies:?}");
        }
    }
    let exported = json!({
        "event": "$identify",
        "distinct_id": "user_1",
        "properties": {},
        "person_properties": person,
        "timestamp": "2026-08-20T09:14:03.512000+00:00",
    });
    let bodies = arrived("identify", &exported, &json!({})).await;
    assert!(bodies.iter().all(|body| body["traits"] == traits), "{bodies:?}");
    let with_set = json!({"event": "$identify", "properties": {"$set": {"plan": "free"}}});
    let bodies = arrived("identify", &with_set, &json!({"person": {"properties": person}})).await;
    assert!(bodies.iter().all(|body| body["traits"] == json!({"plan": "free"})), "{bodies:?}");
}

#[tokio::test]
async fn a_groups_properties_are_the_accounts_traits_and_its_own_id_is_no_contact() {
    let event = |id: &str, group_set: Value| {
        let mut properties = json!({"$group_type": "company", "$group_key": "acme", "$device_id": "device"});
        if !group_set.is_null() {
            properties["$group_set"] = group_set;
        }
        json!({"event": "$groupidentify", "distinct_id": id, "properties": properties})
    };
    let beside = json!({"groups": {"company": {"id": "acme", "index": 0, "properties": {"tier": "old", "$x": 1}}}});
    let odd = json!({"groups": {"company": "acme"}});
    for (group_set, beside, traits) in [
        (json!({"tier": "gold", "seats": 5, "$x": 1, "gone": null}), &beside, json!({"tier": "gold", "seats": 5})),
        (json!(r#"{"tier":"gold"}"#), &beside, json!({"tier": "gold"})),
        (Value::Null, &beside, json!({"tier": "old"})),
        (json!("gold"), &odd, json!({})),
        (json!(["gold"]), &json!({"groups": ["acme"]}), json!({})),
    ] {
        let mut expected = json!({"posthog_group_type": "company"});
        expected.as_object_mut().unwrap().extend(traits.as_object().unwrap().clone());
        for body in arrived("group", &event("$company_acme", group_set.clone()), beside).await {
            assert_eq!(
                (&body["type"], &body["groupId"], &body["traits"]),
                (&json!("group"), &json!("acme"), &expected)
            );
            assert_eq!((body.get("userId"), body.get("anonymousId")), (None, None), "{body}");
        }
    }
    for body in arrived("group", &event("user_1", json!({})), &json!({})).await {
        assert_eq!((&body["userId"], &body["anonymousId"]), (&json!("user_1"), &json!("device")));
    }
}

#[tokio::test]
async fn a_time_goes_out_as_rfc_3339_and_a_servers_system_not_at_all() {
    for (timestamp, expected) in [
        (json!("2026-08-20 09:14:03.512000+00:00"), "2026-08-20T09:14:03.512000Z"),
        (json!("2026-08-20 09:14:03 UTC"), "2026-08-20T09:14:03Z"),
        (json!(1_787_217_243), "2026-08-20T09:14:03Z"),
        (json!(1_787_217_243_512_u64), "2026-08-20T09:14:03.512Z"),
        (json!("2026-08-20T11:14:03.5+02:00"), "2026-08-20T11:14:03.5+02:00"),
    ] {
        let properties = json!({"$os": "Linux", "$is_server": true});
        let event = json!({"event": "e", "timestamp": timestamp, "properties": properties});
        for body in arrived("capture", &event, &json!({})).await {
            assert_eq!((&body["timestamp"], body["context"].get("os")), (&json!(expected), None));
        }
    }
}

#[tokio::test]
async fn the_filters_answer_which_events_of_whom_and_with_what() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |settings| {
        settings.mapping.include = ["survey sent", "plan *"].map(|name| name.parse().unwrap()).to_vec();
        settings.mapping.anonymous = false;
        settings.mapping.keep_properties = vec!["$survey_*".parse().unwrap()];
    })
    .await;
    let survey = json!({"$survey_id": "s", "$survey_response": "great", "$lib": "web", "a": 1});
    let events = [
        json!({"event": "survey sent", "properties": survey}),
        json!({"event": "plan upgraded", "properties": {"$is_identified": true}}),
        json!({"event": "plan upgraded", "properties": {"$is_identified": false}}),
        json!({"event": "plan upgraded", "properties": r#"{"$process_person_profile":false}"#}),
        json!({"event": "clicked", "properties": {}}),
        json!({"event": "$pageview", "properties": {"$process_person_profile": false}}),
        json!({"event": "$pageview", "properties": {}}),
        json!({"event": "$identify", "properties": {"$process_person_profile": false}}),
    ];
    let reply = service.post("/batch", json!({"batch": events}).to_string()).await;
    assert_eq!((reply.status, reply.counts()), (200, [8, 4, 4, 0, 0, 0]));
    let mut bodies = variance.bodies();
    bodies.sort_by_key(|body| body["type"].to_string() + &body["event"].to_string());
    let of = |body: &Value| [&body["type"], &body["event"]].map(|text| text.as_str().unwrap_or_default().to_owned());
    let expected = [["identify", ""], ["page", ""], ["track", "plan upgraded"], ["track", "survey sent"]];
    assert_eq!(bodies.iter().map(of).collect::<Vec<_>>(), expected.map(|pair| pair.map(str::to_owned)));
    assert_eq!(bodies[3]["properties"], json!({"$survey_id": "s", "$survey_response": "great", "a": 1}));
    for (reason, count) in [("anonymous", 3.0), ("not_included", 1.0)] {
        let name = format!("variance_connector_filtered_events_total{{reason=\"{reason}\"}}");
        assert_eq!(service.metric(&name).await, count, "{reason}");
    }

    let batch = json!({"batch": events}).to_string();
    let preview = Program::new(["preview"])
        .env("CONNECTOR_INCLUDE", "survey sent,plan *")
        .env("CONNECTOR_ANONYMOUS", "false")
        .env("CONNECTOR_KEEP_PROPERTIES", "$survey_*");
    let preview = preview.input(batch).run().await;
    assert_eq!((preview.code, preview.out.lines().count()), (0, 4), "{preview:?}");
    assert!(preview.out.contains(r#""properties":{"$survey_id":"s","$survey_response":"great","a":1}"#));
    for line in [
        "1  clicked: not in filter.include",
        "2  plan upgraded: its person is not identified, and filter.anonymous is false",
        "1  $pageview: its person is not identified, and filter.anonymous is false",
    ] {
        assert!(preview.err.contains(line), "{}", preview.err);
    }
}

#[tokio::test]
async fn objects_as_json_text_and_a_byte_order_mark_change_nothing() {
    let set = json!({"email": "ada@example.com"});
    let groups = json!({"company": "acme"});
    let as_objects = json!({"$set": set, "$groups": groups, "$os": "x"});
    let as_text = json!({"$set": set.to_string(), "$groups": groups.to_string(), "$os": "x"});
    let variance = Variance::start().await;
    let service =
        Service::start(&variance, |settings| settings.mapping.account_group = Some("company".to_owned())).await;
    for (last, properties) in [(0, as_objects), (1, json!(as_text.to_string())), (2, as_text)] {
        let uuid = format!("0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b1{last}");
        let event = json!({"event": "$identify", "uuid": uuid, "properties": properties});
        let reply = service.post("/webhook", format!("\u{feff}{event}")).await;
        assert_eq!((reply.status, reply.counts()), (200, [1, 1, 0, 0, 0, 0]), "{event}");
    }
    for body in variance.bodies() {
        assert_eq!((&body["traits"], &body["context"]["groupId"]), (&set, &json!("acme")), "{body}");
        assert_eq!(body["context"]["os"], json!({"name": "x"}));
    }
}

#[tokio::test]
async fn a_template_that_was_not_filled_in_is_told_what_to_change() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let name = "the event's name is a template that was not filled in: in PostHog, set the destination's field \
                \"JSON Body\" back to its default";
    let text = "the event is JSON text in a string, but must be an object: in PostHog, set the destination's field \
                \"JSON Body\" back to its default";
    for (event, reason) in [
        (json!({"event": "{event}", "person": "{person}"}), name),
        (json!({"event": "{{ event }}"}), name),
        (json!({"event": "[object Object]"}), name),
        (json!({"event": {"event": "{event.event}"}}), name),
        (json!({"event": json!({"event": "e", "properties": {}}).to_string()}), text),
    ] {
        let reply = service.post("/webhook", event.to_string()).await;
        assert_eq!(told(&reply), (422, [1, 0, 0, 0, 1, 0], vec![reason.to_owned()]), "{event}");
        let reply = service.post("/batch", json!({"batch": [event, {"event": "e"}]}).to_string()).await;
        assert_eq!(told(&reply), (200, [2, 1, 0, 0, 1, 0], vec![reason.to_owned()]), "{event}");
    }
    let reply = service.post("/batch", json!([json!({"event": "e"}).to_string(), {"event": "f"}]).to_string()).await;
    assert_eq!(told(&reply), (200, [2, 1, 0, 0, 1, 0], vec![text.to_owned()]));
}

#[tokio::test]
async fn an_event_that_would_become_too_large_is_invalid_and_loses_only_its_search() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let page = json!({"event": "$pageview", "properties": {"$current_url": format!("h:/?{}", "<".repeat(1 << 20))}});
    let reply = service.post("/webhook", page.to_string()).await;
    assert_eq!(reply.counts(), [1, 1, 0, 0, 0, 0]);
    let received = variance.received();
    assert!(received[0].body.len() <= 2 * page.to_string().len() + 4096);
    let page = &received[0].json()["context"]["page"];
    assert_eq!((page["url"].as_str().map(str::len), page.get("search")), (Some((1 << 20) + 4), None));
    let thrice = json!({"event": "e", "properties": {"distinct_id": "x".repeat(1 << 20)}});
    let reply = service.post("/batch", json!([thrice, {"event": "e"}]).to_string()).await;
    let reason = "the event's message to Variance would be larger than twice the event and 4 KiB";
    assert_eq!(told(&reply), (200, [2, 1, 0, 0, 1, 0], vec![reason.to_owned()]));
}
