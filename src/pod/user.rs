//! Who a container's processes are.
//!
//! In: security contexts, the image's `User`, and the image's /etc/passwd and /etc/group as text.
//! Out: numbers. Reads no file.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::run::User;

/// Why it is not known who a container is, or why it may not be that; in the kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `runAsNonRoot` and `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsUserIsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// Its name.
        container: String,
    },
    /// `runAsNonRoot` and an image that runs as root.
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageIsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// Its name.
        container: String,
    },
    /// `runAsNonRoot` and an image that names its user: a name proves nothing.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: {pod:?}, container: {container})"
    )]
    ImageUserNotNumeric {
        /// The image's user.
        user: String,
        /// `name_namespace(uid)`.
        pod: String,
        /// Its name.
        container: String,
    },
    /// The image names a user that its /etc/passwd does not have.
    #[error("unable to find user {user}: no matching entries in passwd file")]
    NoSuchUser {
        /// The name.
        user: String,
    },
    /// The image names a group that its /etc/group does not have.
    #[error("unable to find group {group}: no matching entries in group file")]
    NoSuchGroup {
        /// The name.
        group: String,
    },
}

/// The image's side: its `User` and the files that explain it, empty when it has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageUser<'a> {
    /// `User` of the image's config: ``, `1000`, `1000:1000`, `name`, `name:group`.
    pub user: &'a str,
    /// /etc/passwd of the image.
    pub passwd: &'a str,
    /// /etc/group of the image.
    pub group: &'a str,
}

/// Whether resolving `user` needs /etc/passwd and /etc/group of the image.
#[must_use]
pub fn needs_files(user: &str) -> bool {
    user.split(':').any(|part| !part.is_empty() && part.parse::<u32>().is_err())
}

/// Resolves who a container is.
///
/// # Errors
/// [`UserError`] when a name is not known, or when `runAsNonRoot` forbids what it resolves to.
pub fn resolve(pod: &Pod, container: &Container, image: ImageUser<'_>) -> Result<User, UserError> {
    let spec = pod.spec.as_ref();
    let pod_context = spec.and_then(|spec| spec.security_context.as_ref());
    let context = container.security_context.as_ref();
    let run_as_user = context.and_then(|c| c.run_as_user).or(pod_context.and_then(|c| c.run_as_user));
    let run_as_group = context.and_then(|c| c.run_as_group).or(pod_context.and_then(|c| c.run_as_group));
    let non_root = context.and_then(|c| c.run_as_non_root).or(pod_context.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) {
        verify_non_root(pod, container, run_as_user, image.user)?;
    }
    let (image_user, image_group) = image.user.split_once(':').unwrap_or((image.user, ""));
    let (uid, own_gid, name) = match run_as_user {
        Some(uid) => {
            let entry = passwd_entries(image.passwd).find(|entry| i64::from(entry.uid) == uid);
            (clamp(uid), entry.as_ref().map_or(0, |e| e.gid), entry.map(|e| e.name))
        }
        None => image_uid(image_user, image.passwd)?,
    };
    let gid = match run_as_group {
        Some(gid) => clamp(gid),
        // runAsUser replaces the whole `user:group` of the image.
        None if run_as_user.is_some() || image_group.is_empty() => own_gid,
        None => image_gid(image_group, image.group)?,
    };
    let mut groups: Vec<u32> = Vec::new();
    let given = pod_context.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten();
    groups.extend(given.map(|gid| clamp(*gid)));
    groups.extend(pod_context.and_then(|c| c.fs_group).map(clamp));
    if pod_context.and_then(|c| c.supplemental_groups_policy.as_deref()) != Some("Strict") {
        groups.extend(name.into_iter().flat_map(|name| groups_of(name, image.group)));
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|group| seen.insert(*group));
    Ok(User { uid, gid, groups })
}

fn verify_non_root(pod: &Pod, container: &Container, run_as: Option<i64>, image: &str) -> Result<(), UserError> {
    let name = || format_pod(pod);
    let container = || container.name.clone();
    if let Some(uid) = run_as {
        return if uid == 0 { Err(UserError::RunAsUserIsRoot { pod: name(), container: container() }) } else { Ok(()) };
    }
    let user = image.split(':').next().unwrap_or("");
    match user.parse::<u32>() {
        Ok(0) => Err(UserError::ImageIsRoot { pod: name(), container: container() }),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => Err(UserError::ImageIsRoot { pod: name(), container: container() }),
        Err(_) => Err(UserError::ImageUserNotNumeric { user: user.to_owned(), pod: name(), container: container() }),
    }
}

/// `name_namespace(uid)`, as the kubelet writes a pod in messages.
#[must_use]
pub fn format_pod(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn passwd_entries(passwd: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(PasswdEntry { name, uid, gid })
    })
}

fn image_uid<'a>(user: &'a str, passwd: &'a str) -> Result<(u32, u32, Option<&'a str>), UserError> {
    if user.is_empty() {
        return Ok((0, 0, Some("root")));
    }
    if let Ok(uid) = user.parse::<u32>() {
        let entry = passwd_entries(passwd).find(|entry| entry.uid == uid);
        return Ok((uid, entry.as_ref().map_or(0, |e| e.gid), entry.map(|e| e.name)));
    }
    let entry = passwd_entries(passwd).find(|entry| entry.name == user);
    let entry = entry.ok_or_else(|| UserError::NoSuchUser { user: user.to_owned() })?;
    Ok((entry.uid, entry.gid, Some(entry.name)))
}

fn image_gid(group: &str, file: &str) -> Result<u32, UserError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    group_entries(file)
        .find_map(|(name, gid, _)| (name == group).then_some(gid))
        .ok_or_else(|| UserError::NoSuchGroup { group: group.to_owned() })
}

fn groups_of<'a>(user: &'a str, file: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_entries(file).filter(move |(_, _, members)| members.split(',').any(|m| m == user)).map(|(_, gid, _)| gid)
}

fn group_entries(file: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("").trim()))
    })
}

/// Validation keeps ids in 0..2^31.
fn clamp(id: i64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:Web:/srv:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:1001:\nlogs:x:4:web,other\nadm:x:5:other\n";

    fn who(pod: serde_json::Value, container: serde_json::Value, user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [], "securityContext": pod}}),
        )
        .unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c", "securityContext": container})).unwrap();
        let image = ImageUser { user, passwd: PASSWD, group: GROUP };
        resolve(&pod, &container, image).map(|u| (u.uid, u.gid, u.groups)).map_err(|e| e.to_string())
    }

    #[test]
    fn users_come_from_the_pod_else_from_the_image() {
        let none = || json!({});
        for (case, pod, container, image, expected) in [
            ("nobody says", none(), none(), "", Ok((0, 0, vec![]))),
            ("the image by number", none(), none(), "1000", Ok((1000, 1001, vec![4]))),
            ("the image by name", none(), none(), "web", Ok((1000, 1001, vec![4]))),
            ("the image with a group", none(), none(), "web:www", Ok((1000, 1001, vec![4]))),
            ("the image with numbers it does not know", none(), none(), "7:8", Ok((7, 8, vec![]))),
            ("the pod", json!({"runAsUser": 5, "runAsGroup": 6}), none(), "web", Ok((5, 6, vec![]))),
            (
                "the container over the pod",
                json!({"runAsUser": 5}),
                json!({"runAsUser": 9}),
                "web:www",
                Ok((9, 0, vec![])),
            ),
            (
                "groups",
                json!({"supplementalGroups": [7, 4], "fsGroup": 2000}),
                none(),
                "web",
                Ok((1000, 1001, vec![7, 4, 2000])),
            ),
            (
                "only the pod's groups",
                json!({"supplementalGroupsPolicy": "Strict", "fsGroup": 3}),
                none(),
                "web",
                Ok((1000, 1001, vec![3])),
            ),
            (
                "an unknown name",
                none(),
                none(),
                "nobody",
                Err("unable to find user nobody: no matching entries in passwd file"),
            ),
            (
                "an unknown group",
                none(),
                none(),
                "web:none",
                Err("unable to find group none: no matching entries in group file"),
            ),
            (
                "non-root and root",
                json!({"runAsNonRoot": true}),
                json!({"runAsUser": 0}),
                "web",
                Err("container's runAsUser breaks non-root policy (pod: \"p_ns(u)\", container: c)"),
            ),
            (
                "non-root and a root image",
                json!({"runAsNonRoot": true}),
                none(),
                "",
                Err("container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: c)"),
            ),
            (
                "non-root and a named user",
                json!({"runAsNonRoot": true}),
                none(),
                "web",
                Err(
                    "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root (pod: \"p_ns(u)\", container: c)",
                ),
            ),
            ("non-root and a number", json!({"runAsNonRoot": true}), none(), "1000", Ok((1000, 1001, vec![4]))),
            (
                "the container lifts the pod's rule",
                json!({"runAsNonRoot": true}),
                json!({"runAsNonRoot": false}),
                "",
                Ok((0, 0, vec![])),
            ),
        ] {
            assert_eq!(who(pod, container, image), expected.map_err(str::to_owned), "{case}");
        }
        assert!(needs_files("web") && needs_files("1:www") && !needs_files("1000:5") && !needs_files(""));
    }
}
