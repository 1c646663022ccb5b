//! Shutdown: running answers end, idle connections and endless streams do not hold it up.

use std::time::{Duration, Instant};

use opengrid_gateway::GatewayConfig;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    client::read_until,
    fake::{Act, config, say, served, served_with},
};

#[tokio::test]
async fn shutdown_lets_answers_end_and_waits_for_nothing_else() {
    let mut s = served().await;
    s.grid.set(|job| {
        let mut acts = say(job, b"slow but whole");
        acts.insert(2, Act::Wait(Duration::from_millis(300)));
        acts
    });
    let idle = TcpStream::connect(s.client.address).await.unwrap();
    let mut events = s.client.open("/grid/v1/events", &Value::Null).await;
    read_until(&mut events, "data: ").await;
    let body = json!({ "model": "bytes", "prompt": "x", "stream": true });
    let mut answer = s.client.open("/v1/completions", &body).await;
    read_until(&mut answer, "\"s\"").await;
    let asked = Instant::now();
    s.shutdown.cancel();
    let mut rest = String::new();
    answer.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("[DONE]"), "{rest}");
    (&mut s.server).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert!(TcpStream::connect(s.client.address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn what_outlasts_the_grace_time_is_cut_off_and_cancelled() {
    let mut s = served_with(GatewayConfig { grace: Duration::from_millis(100), ..config() }).await;
    s.grid.set(|_| vec![Act::Hang]);
    let answer = s.client.open("/v1/completions", &json!({ "model": "bytes", "prompt": "x" })).await;
    while s.grid.jobs.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    s.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(2), &mut s.server).await.unwrap().unwrap();
    s.grid.wait_cancelled(1).await;
    drop(answer);
}
