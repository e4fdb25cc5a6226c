//! Events as posthog-js sends them, about 2 kB each.

use std::fmt::Write;

/// Writes an event as a JSON object. Each `number` makes a different one; every fifth is `$autocapture`, which is
/// filtered.
pub fn write_event(out: &mut String, number: u64) {
    let name = match number % 5 {
        0 => "$autocapture",
        1 => "$pageview",
        2 => "$identify",
        _ => "plan upgraded",
    };
    write!(
        out,
        r#"{{"uuid":"0198c4c1-6c1e-7d3a-9b54-{number:012x}","event":"{name}","elements_chain":"","distinct_id":"user_{}","properties":{{"plan":"team","seats":12,"source":"settings","experiment":"pricing-b","$current_url":"https://app.example.com/billing/upgrade?ref=nav&campaign=autumn","$host":"app.example.com","$pathname":"/billing/upgrade","$referrer":"https://app.example.com/home","$referring_domain":"app.example.com","$os":"Mac OS X","$os_version":"15.6.0","$browser":"Chrome","$browser_version":139,"$browser_language":"en-GB","$device_type":"Desktop","$raw_user_agent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/139.0.0.0 Safari/537.36","$screen_height":982,"$screen_width":1512,"$viewport_height":833,"$viewport_width":1512,"$timezone":"Europe/Paris","$lib":"web","$lib_version":"1.260.0","$insert_id":"m3k1x9c0qf7a2b4d","$time":1787217243.512,"token":"phc_abcdefghijklmnopqrstuvwxyz0123456789ABCDEF","distinct_id":"user_42","$device_id":"0198c4a0-1111-7aaa-8bbb-000000000001","$user_id":"user_42","$session_id":"0198c4c0-4d31-7c00-8000-000000000006","$window_id":"0198c4c0-4d31-7c00-8000-000000000007","$is_identified":true,"$process_person_profile":true,"$groups":{{"company":"acme"}},"$ip":"203.0.113.7","$geoip_country_code":"FR","$geoip_country_name":"France","$geoip_city_name":"Paris","$geoip_time_zone":"Europe/Paris","$set":{{"email":"ada@example.com","name":"Ada","$browser":"Chrome","$os":"Mac OS X"}},"$set_once":{{"$initial_current_url":"https://app.example.com/","$initial_referrer":"$direct"}}}},"timestamp":"2026-08-20T09:14:03.512Z"}}"#,
        number % 1000,
    )
    .expect("a string takes all that is written to it");
}

/// Returns a body as the connector posts it, for loops that post nothing else.
pub fn message() -> String {
    let mut event = String::new();
    write_event(&mut event, 3);
    event.truncate(1100);
    format!("{{\"pad\":{}}}", serde_json::Value::String(event))
}
