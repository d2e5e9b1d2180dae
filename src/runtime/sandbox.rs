//! What the containers of one pod share: network, volumes, managed files, process ids where it says so, and the limits of
//! all together.
//!
//! In: a `SandboxSpec`. Out: a sandbox that containers are started in, whose projected volumes can be replaced.
//! Runs nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use super::container::{Container, PodFiles};
use super::error::RuntimeError;
use super::limits::MemoryCharge;
use super::process::{FirstPid, PidNamespace};
use super::scheduler::{CpuLimits, PodCpu};
use crate::ids::{ContainerId, PodRef};
use crate::network::{NodeNetwork, PodNetwork, PodNetworkSpec};
use crate::pod::run::{ContainerSpec, PodLimits, ProcessNamespace, Projection, SandboxSpec, VolumeSource, VolumeSpec};
use crate::vfs::{ManagedFile, Volume, VolumeError};

/// One sandbox.
pub(super) struct Sandbox {
    pub(super) pod: PodRef,
    pub(super) hostname: String,
    pub(super) network: Arc<PodNetwork>,
    pub(super) files: PodFiles,
    pub(super) memory: Arc<MemoryCharge>,
    pub(super) cpu: Arc<PodCpu>,
    pub(super) containers: HashMap<ContainerId, Arc<Container>>,
    /// Of the whole pod, for containers that share.
    pids: Arc<PidNamespace>,
    /// Those of the other containers, by name, for as long as an attempt or a debug container is in them.
    pids_of: HashMap<String, Weak<PidNamespace>>,
}

impl Sandbox {
    /// Opens volumes and network.
    pub(super) async fn create(
        spec: SandboxSpec,
        ips: Vec<IpAddr>,
        network: &NodeNetwork,
    ) -> Result<Self, RuntimeError> {
        let mut volumes = HashMap::new();
        for volume in &spec.volumes {
            let opened = open(volume).await.map_err(|source| RuntimeError::Volume {
                pod: spec.pod.clone(),
                volume: volume.name.clone(),
                source,
            })?;
            volumes.insert(volume.name.clone(), opened);
        }
        network.policies_decided().await;
        let pod_network = network
            .add_pod(PodNetworkSpec {
                uid: spec.uid,
                pod: spec.pod.clone(),
                names: spec.network.names,
                mode: spec.network.mode,
                ips,
                dns: spec.network.dns,
                host_aliases: spec.network.host_aliases,
                host_ports: spec.network.host_ports,
            })
            .map_err(|source| RuntimeError::Network { pod: spec.pod.clone(), source })?;
        let files = PodFiles {
            volumes,
            hosts: ManagedFile::new(pod_network.etc_hosts().as_bytes()),
            resolv_conf: ManagedFile::new(pod_network.resolv_conf().as_bytes()),
            hostname: ManagedFile::new(format!("{}\n", spec.hostname).as_bytes()),
            descriptors: pod_network.descriptors().clone(),
        };
        let containers = HashMap::new();
        let (memory, cpu) = (MemoryCharge::new(spec.limits.memory_bytes), PodCpu::new(cpu_limits(&spec.limits)));
        Ok(Self {
            pod: spec.pod,
            hostname: spec.hostname,
            network: pod_network,
            files,
            memory,
            cpu,
            containers,
            pids: Arc::default(),
            pids_of: HashMap::new(),
        })
    }

    /// The process ids that an attempt of a container takes its own from.
    ///
    /// A debug container stays with its target through restarts: whichever of the two comes first makes the namespace,
    /// the next attempt is in it again, as process 1. (On Linux the namespace ends with the target's first process, and
    /// the debug container with it.)
    pub(super) fn process_ids(&mut self, spec: &ContainerSpec) -> (Arc<PidNamespace>, FirstPid) {
        let (of, first) = match &spec.processes {
            ProcessNamespace::Pod => return (self.pids.clone(), FirstPid::Next),
            ProcessNamespace::Container => (&spec.name, FirstPid::Init),
            ProcessNamespace::Target(target) => (target, FirstPid::Next),
        };
        let pids = self.pids_of.get(of).and_then(Weak::upgrade).unwrap_or_default();
        self.pids_of.insert(of.clone(), Arc::downgrade(&pids));
        // Who targets a debug container is where that one is.
        self.pids_of.insert(spec.name.clone(), Arc::downgrade(&pids));
        (pids, first)
    }

    /// Other limits for all its containers together, from now on.
    pub(super) fn set_limits(&self, limits: &PodLimits) {
        self.memory.set_limit(limits.memory_bytes);
        self.cpu.set_limits(cpu_limits(limits));
    }

    /// Replaces the content of a projected volume.
    pub(super) fn update_volume(&self, name: &str, content: &Projection) -> Result<(), RuntimeError> {
        let volume = self.volume(name)?;
        volume.update(content).map_err(|source| self.volume_error(name, source))
    }

    /// A volume by name.
    pub(super) fn volume(&self, name: &str) -> Result<&Arc<Volume>, RuntimeError> {
        let missing = || RuntimeError::NoSuchVolume { pod: self.pod.clone(), volume: name.to_owned() };
        self.files.volumes.get(name).ok_or_else(missing)
    }

    /// An error of one of its volumes.
    pub(super) fn volume_error(&self, volume: &str, source: VolumeError) -> RuntimeError {
        RuntimeError::Volume { pod: self.pod.clone(), volume: volume.to_owned(), source }
    }
}

fn cpu_limits(limits: &PodLimits) -> CpuLimits {
    CpuLimits { milli: limits.cpu_milli, shares: limits.cpu_shares }
}

async fn open(spec: &VolumeSpec) -> Result<Arc<Volume>, VolumeError> {
    match &spec.source {
        VolumeSource::NodeDirectory { path, size_limit, medium } => {
            Volume::node_directory(path, *medium, *size_limit).await
        }
        VolumeSource::HostPath { path, hidden } => Volume::host_path(path, hidden).await,
        VolumeSource::Projection(content) => Volume::projection(content),
        VolumeSource::Deferred => Ok(Volume::deferred()),
    }
}
