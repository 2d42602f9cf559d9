//! Which layers are in force: asked of the kernel, never remembered.
use super::{
    Fence, Layer,
    hooks::{HOOKS, Hook, MISSING},
    load::Loaded,
    sys,
};

impl Fence {
    pub(super) fn ask_layers(&self) -> Vec<Layer> {
        let hooks = HOOKS.iter().map(|hook| {
            let why = self.why_not(hook);
            Layer {
                name: hook.name.to_owned(),
                enforcing: why.is_none(),
                leaves_open: hook.leaves_open.to_owned(),
                why,
            }
        });
        let missing = MISSING.iter().map(|(name, leaves_open)| Layer {
            name: (*name).to_owned(),
            enforcing: false,
            leaves_open: (*leaves_open).to_owned(),
            why: Some("not built in this version".to_owned()),
        });
        hooks
            .chain(std::iter::once(self.listener_layer()))
            .chain(missing)
            .collect()
    }

    /// Why a hook is not in force; `None` if this agent's program is attached and will stay so.
    fn why_not(&self, hook: &Hook) -> Option<String> {
        let Some(&Loaded { id: ours, .. }) = self
            .programs
            .iter()
            .find(|program| program.hook.name == hook.name)
        else {
            return Some("not loaded".to_owned());
        };
        match sys::attached(&self.root.fd, hook.attach) {
            Err(error) => return Some(format!("cannot ask the kernel: {error}")),
            Ok(attached) if !attached.contains(&ours) => {
                return Some(format!(
                    "the agent's program (id {ours}) is not attached to the cgroup root: restart the agent"
                ));
            }
            Ok(_) => {}
        }
        match sys::open_pin(&self.pins.link(hook.name)).and_then(sys::link_info) {
            Err(error) => Some(format!(
                "attached, but its pin is gone ({error}): it will not outlive the agent; restart the agent"
            )),
            Ok(link) if link.program != ours || link.attach != hook.attach => Some(format!(
                "the pinned link holds another program (id {}): restart the agent",
                link.program
            )),
            Ok(_) => None,
        }
    }

    /// Is there a listener that connections are steered to? Without one they are refused.
    fn listener_layer(&self) -> Layer {
        let why = match self.maps.write().settings() {
            Err(error) => Some(error.to_string()),
            Ok(settings) if settings.port4 == 0 && settings.port6 == 0 => {
                Some("no listener has been admitted: every connection is refused".to_owned())
            }
            Ok(_) => None,
        };
        Layer {
            name: "listener".to_owned(),
            enforcing: why.is_none(),
            leaves_open: "nothing passes that should not: governed connections are refused while there is none".to_owned(),
            why,
        }
    }
}
