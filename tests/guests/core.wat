;; Honest exports and hostile ones, one module: a test names the export.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "ifbus")
  (table 1 funcref)

  (func (export "add") (param i32 i32) (result i32)
    (i32.add (local.get 0) (local.get 1)))

  ;; n-th Fibonacci number modulo 2^64, by a loop
  (func (export "fib") (param $n i32) (result i64)
    (local $a i64) (local $b i64) (local $t i64)
    (local.set $b (i64.const 1))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $n)))
        (local.set $t (i64.add (local.get $a) (local.get $b)))
        (local.set $a (local.get $b))
        (local.set $b (local.get $t))
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br $next)))
    (local.get $a))

  (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
  (func (export "root") (param f64) (result f64) (f64.sqrt (local.get 0)))
  (func (export "pair") (param i32) (result i32 i32) (local.get 0) (local.get 0))
  (func (export "nothing"))
  (func (export "reference") (param funcref))

  ;; the first byte of memory, which it then overwrites: 105 unless an instance is used twice
  (func (export "once") (result i32)
    (i32.load8_u (i32.const 0))
    (i32.store8 (i32.const 0) (i32.const 0)))

  ;; pages that memory has after growing by n; -1 when refused
  (func (export "grow") (param i32) (result i32)
    (memory.grow (local.get 0)))

  ;; grows page by page, touches each, and gives up when refused
  (func (export "devour")
    (local $at i32)
    (loop $more
      (local.set $at (memory.grow (i32.const 1)))
      (if (i32.eq (local.get $at) (i32.const -1)) (then unreachable))
      (i32.store (i32.mul (local.get $at) (i32.const 65536)) (i32.const 1))
      (br $more)))

  (func (export "tables") (param i32) (result i32)
    (table.grow (ref.null func) (local.get 0)))

  (func (export "spin") (loop $for_ever (br $for_ever)))
  (func $recurse (export "recurse") (param i32) (result i32)
    (i32.add (i32.const 1) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
  (func (export "crash") unreachable)
  (func (export "outside") (result i32) (i32.load (i32.const -8)))
  (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0))))
