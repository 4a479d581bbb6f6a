;; Never gets past instantiation.
(module
  (func $for_ever (loop $again (br $again)))
  (start $for_ever)
  (func (export "run")))
