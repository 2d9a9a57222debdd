; One arm moves blocks, one at a time, between the table and the tops of towers.
(define (domain blocksworld-4ops)
  (:requirements :strips)
  (:predicates (on ?upper ?lower) (on-table ?b) (clear ?b) (holding ?b) (arm-empty))

  (:action pickup
    :parameters (?b)
    :precondition (and (arm-empty) (clear ?b) (on-table ?b))
    :effect (and (not (arm-empty)) (not (clear ?b)) (not (on-table ?b)) (holding ?b)))

  (:action putdown
    :parameters (?b)
    :precondition (holding ?b)
    :effect (and (not (holding ?b)) (arm-empty) (clear ?b) (on-table ?b)))

  (:action stack
    :parameters (?b ?lower)
    :precondition (and (holding ?b) (clear ?lower))
    :effect (and (not (holding ?b)) (not (clear ?lower)) (arm-empty) (clear ?b) (on ?b ?lower)))

  (:action unstack
    :parameters (?b ?lower)
    :precondition (and (arm-empty) (clear ?b) (on ?b ?lower))
    :effect (and (not (arm-empty)) (not (clear ?b)) (not (on ?b ?lower))
                 (holding ?b) (clear ?lower))))
