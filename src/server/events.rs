//! `GET /events`: what happened lately, oldest first.

use axum::Json;
use axum::extract::State;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Event;

use super::NodeApi;

pub(super) async fn list(State(api): State<NodeApi>) -> Json<List<Event>> {
    let items = api.events.recent().iter().map(|event| Event::clone(event)).collect();
    Json(List { items, ..List::default() })
}
