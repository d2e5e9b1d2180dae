//! Every shape in the wild, as manifests.

use std::collections::BTreeMap;

use super::super::documents::RootFs;
use super::*;

fn blob(media_type: &str, seed: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(seed.as_bytes()),
        size: 10,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn manifest(config: &str, layers: &[&str]) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: None,
        artifact_type: None,
        config: blob(config, "config"),
        layers: layers.iter().enumerate().map(|(n, layer)| blob(layer, &n.to_string())).collect(),
        annotations: BTreeMap::new(),
    }
}

fn with_diff_ids(count: usize) -> Configuration {
    let diff_ids = (0..count).map(|n| Digest::of(format!("diff{n}").as_bytes())).collect();
    Configuration { rootfs: Some(RootFs { kind: "layers".to_owned(), diff_ids }), ..Configuration::default() }
}

#[test]
fn every_bare_wasm_layer_is_an_artifact() {
    for (config, layer) in [
        (media_type::WASM_CONFIG, media_type::WASM),
        (media_type::CONFIG, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"),
        ("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm"),
        ("application/vnd.wasmcloud.actor.archive.config", "application/vnd.module.wasm.content.layer.v1+wasm"),
    ] {
        let shape = Shape::of(&manifest(config, &[layer]), &Configuration::default()).unwrap();
        assert!(matches!(shape.parts, Parts::Artifact(_)), "{layer}");
        assert_eq!(shape.config.entrypoint, ["/app.wasm"], "{layer}");
    }
}

#[test]
fn an_artifacts_entrypoint_keeps_its_function_and_arguments() {
    let mut configuration = Configuration::default();
    configuration.config.entrypoint = vec!["/hello.wasm#serve".to_owned(), "-v".to_owned()];
    configuration.config.cmd = vec!["x".to_owned()];
    let shape = Shape::of(&manifest(media_type::CONFIG, &[media_type::WASM]), &configuration).unwrap();
    assert_eq!(shape.config.entrypoint, ["/app.wasm#serve", "-v"]);
    assert_eq!(shape.config.cmd, ["x"]);
}

#[test]
fn ordinary_layers_make_a_root_file_system() {
    for layer in [
        media_type::LAYER,
        media_type::LAYER_GZIP,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ] {
        let shape = Shape::of(&manifest(media_type::CONFIG, &[layer, layer]), &with_diff_ids(2)).unwrap();
        assert!(matches!(shape.parts, Parts::Layers(layers) if layers.len() == 2), "{layer}");
    }
}

#[test]
fn what_cannot_run_says_why() {
    let tar = media_type::LAYER;
    let odd = "application/x-odd";
    for (manifest, configuration, part) in [
        (manifest(media_type::CONFIG, &[]), with_diff_ids(0), "it has no layers"),
        (manifest(media_type::WASM_CONFIG, &[media_type::WASM, media_type::WASM]), with_diff_ids(0), "2 layers"),
        (
            manifest(media_type::CONFIG, &[tar, media_type::WASM]),
            with_diff_ids(2),
            "exactly one application/wasm layer",
        ),
        (manifest(media_type::CONFIG, &[odd]), with_diff_ids(1), "unsupported media type \"application/x-odd\""),
        (manifest("application/vnd.cncf.helm.config.v1+json", &[odd]), with_diff_ids(1), "Helm chart"),
        (
            manifest(media_type::CONFIG, &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]),
            with_diff_ids(1),
            "encrypted layers",
        ),
        (manifest(media_type::CONFIG, &[tar, tar]), with_diff_ids(1), "lists 1 diff ids for 2 layers"),
    ] {
        let error = Shape::of(&manifest, &configuration).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_wasm_configuration_that_names_another_layer_is_refused() {
    let configuration = Configuration { layer_digests: vec![Digest::of(b"other")], ..Configuration::default() };
    let error = Shape::of(&manifest(media_type::WASM_CONFIG, &[media_type::WASM]), &configuration).unwrap_err();
    assert!(matches!(error, ShapeError::LayerMismatch { .. }));
}
