//! The control socket, with input of a root process, in lines or not.

use std::cell::RefCell;

use balancer::operator::control::{Request, converse};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Each line is answered by one line, in order, until one is not complete.
pub fn feed(data: &[u8]) {
    let (mut answers, requests) = (Vec::new(), RefCell::new(0));
    let handler = |request: Request| {
        *requests.borrow_mut() += 1;
        async move { serde_json::to_value(request).map_err(|error| error.to_string()) }
    };
    let conversation = converse(tokio::io::join(data, &mut answers), &handler);
    RUNTIME.with(|runtime| runtime.block_on(conversation)).expect("nobody hangs up");
    let lines = data.split_inclusive(|byte| *byte == b'\n').count();
    let answers = String::from_utf8(answers).expect("text");
    assert_eq!(answers.lines().count(), lines, "{answers}");
    let mut served = 0;
    for answer in answers.lines() {
        let answer: Value = serde_json::from_str(answer).expect("JSON");
        match (answer.get("ok"), answer.get("error")) {
            (Some(request), None) => {
                served += 1;
                let request: Request = serde_json::from_value(request.clone()).expect("what was understood");
                assert_eq!(&serde_json::to_value(&request).ok(), &answer.get("ok").cloned());
            }
            (None, Some(Value::String(text))) => assert!(!text.is_empty()),
            _ => panic!("neither: {answer}"),
        }
    }
    assert_eq!(served, requests.into_inner());
}
